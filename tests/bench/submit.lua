-- wrk script: submissions of one message, spread over many users, with every answer's status counted.
-- The requests are rendered once, before the clock starts, so that the generator takes as little of the machine as it can.

-- Enough that nobody comes near the default of 100 queued runs for one user.
local USERS = 10000
local MESSAGE = string.rep("measure twice, cut once. ", 8)

local threads = {}
local rendered = {}

-- Global on purpose: done() runs in another Lua state and reads a thread's globals by name.
sent, accepted, refused, first_refusal = 0, 0, 0, ""

function setup(thread)
   table.insert(threads, thread)
end

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
   if status == 202 then
      accepted = accepted + 1
   else
      refused = refused + 1
      if refused == 1 then
         first_refusal = status .. " " .. body
      end
   end
end

function done(summary, latency, requests)
   local total = { sent = 0, accepted = 0, refused = 0 }
   local refusal = ""
   for _, thread in ipairs(threads) do
      for name in pairs(total) do
         total[name] = total[name] + thread:get(name)
      end
      if refusal == "" then
         refusal = thread:get("first_refusal")
      end
   end
   local errors = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
   -- One line of tab-separated values for the driver; the refusal is last because it is free text.
   io.write(string.format("BENCH\t%d\t%d\t%d\t%d\t%d\t%.0f\t%.0f\t%s\n", summary.duration, total.sent, total.accepted,
      total.refused, errors, latency:percentile(50), latency:percentile(99), (refusal:gsub("%s+", " "))))
end
