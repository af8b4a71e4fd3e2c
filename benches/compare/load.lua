-- A load for wrk: what to send is in the environment, what came of it is printed as one line of JSON.
wrk.method = os.getenv("LOAD_METHOD") or "GET"

local upload = tonumber(os.getenv("LOAD_UPLOAD") or "0")
if upload > 0 then
  wrk.body = string.rep("u", upload)
end

if os.getenv("LOAD_HEADERS") == "browser" then
  -- With Host, which wrk adds, 14.
  wrk.headers["User-Agent"] =
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
  wrk.headers["Accept"] =
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"
  wrk.headers["Accept-Language"] = "en-GB,en;q=0.9,de;q=0.8"
  wrk.headers["Accept-Encoding"] = "gzip, deflate, br, zstd"
  wrk.headers["Cache-Control"] = "max-age=0"
  wrk.headers["Cookie"] = "session=2f1c9b6e0d7a4c53b8e1f0a2d3c4b5a6; theme=dark; consent=necessary"
  wrk.headers["Referer"] = "https://www.example.com/users?page=2"
  wrk.headers["Sec-Ch-Ua"] = '"Chromium";v="142", "Not A(Brand";v="24"'
  wrk.headers["Sec-Ch-Ua-Mobile"] = "?0"
  wrk.headers["Sec-Ch-Ua-Platform"] = '"Linux"'
  wrk.headers["Sec-Fetch-Dest"] = "document"
  wrk.headers["Sec-Fetch-Mode"] = "navigate"
  wrk.headers["Upgrade-Insecure-Requests"] = "1"
end

if os.getenv("LOAD_CLOSE") == "1" then
  wrk.headers["Connection"] = "close"
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "not_2xx": %d, "broken": %d, "timeouts": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), errors.status,
    errors.connect + errors.read + errors.write, errors.timeout))
end
