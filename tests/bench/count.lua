-- What the wrk scripts here share: every answer is judged and counted, and the driver gets one line.

local threads = {}

-- Global on purpose: done() runs in another Lua state and reads a thread's globals by name.
sent, accepted, refused, first_refusal = 0, 0, 0, ""

function setup(thread)
   thread:set("number", #threads)
   table.insert(threads, thread)
end

function count(right, status, body)
   if right then
      accepted = accepted + 1
   else
      refused = refused + 1
      if refused == 1 then
         first_refusal = status .. " " .. body:sub(1, 600)
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
