-- SPDX-License-Identifier: Apache-2.0
-- What Triton 2.51 answers with another status than clients need to decide whether to try again.

local GRPC_STATUS, UNAVAILABLE = "grpc-status", "14"

-- Only models that are served are routed to, so one that is not found is being loaded.
local function is_loading(message)
  return message:find("unknown model", 1, true) and not message:find("version %d+ is not found")
end

local function is_temporary(message)
  return is_loading(message) or message:find("is not healthy", 1, true)
end

local function correct_grpc(headers)
  if is_temporary(headers:get("grpc-message") or "") then
    headers:replace(GRPC_STATUS, UNAVAILABLE)
  end
end

local function correct_http(handle)
  local status = handle:headers():get(":status")
  if status == "200" then
    return
  end
  local body = handle:body()
  local message = body and body:getBytes(0, math.min(body:length(), 1000)) or ""
  -- What was got before the body had come is not valid any more.
  local headers = handle:headers()
  if status == "503" or is_temporary(message) then
    headers:replace(":status", "503")
    headers:replace("retry-after", "1")
  elseif message:find(" to parse ", 1, true) then
    headers:replace(":status", "400")
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  if (headers:get("content-type") or ""):find("application/grpc", 1, true) == 1 then
    -- An error of Triton has no body, so its status comes with the headers.
    correct_grpc(headers)
  else
    correct_http(handle)
  end
end
