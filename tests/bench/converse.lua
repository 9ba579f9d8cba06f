-- wrk script: each thread is one user with one connection and one conversation, who waits for every result.
-- The argument tells one call from another: a conversation is its call's own.
require("count")

local marker, headers, conversation = "", {}, ""

function init(args)
   headers = { ["Content-Type"] = "application/json", ["Prefer"] = "wait=60", ["X-User-Id"] = "talk-" .. args[1] .. "-" .. number }
   conversation = "talk-" .. args[1] .. "-" .. number
end

function request()
   sent = sent + 1
   marker = string.format("measure twice, cut once, %s, %d", conversation, sent)
   return wrk.format("POST", nil, headers, string.format('{"conversationId":"%s","message":"%s"}', conversation, marker))
end

-- With one connection a thread the answer is that to the last request.
function response(status, headers, body)
   count(status == 200 and body:find('"text":"' .. marker .. '"', 1, true) ~= nil, status, body)
end
