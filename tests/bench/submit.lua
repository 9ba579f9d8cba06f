-- wrk script: submissions of one message, spread over many users, with every answer's status counted.
-- The requests are rendered once, before the clock starts, so that the generator takes as little of the machine as it can.
require("count")

-- Enough that nobody comes near the default of 100 queued runs for one user.
local USERS = 10000
local MESSAGE = string.rep("measure twice, cut once. ", 8)

local rendered = {}

function init(args)
   local body = string.format('{"message":"%s"}', MESSAGE)
   for user = 1, USERS do
      local headers = { ["Content-Type"] = "application/json", ["X-User-Id"] = "bench-" .. user }
      rendered[user] = wrk.format("POST", nil, headers, body)
   end
end

function request()
   sent = sent + 1
   return rendered[sent % USERS + 1]
end

function response(status, headers, body)
   count(status == 202, status, body)
end
