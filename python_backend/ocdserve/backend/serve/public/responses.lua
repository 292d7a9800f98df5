-- SPDX-License-Identifier: Apache-2.0
-- What Triton 2.51 answers with another status than clients need to decide whether to try again.
-- Only models that are served are routed to, so "not found" means that a model is being loaded.

local GRPC_STATUS = "grpc-status"
local NOT_FOUND, UNAVAILABLE = "5", "14"

local function temporary(message)
  return message:find("no available versions", 1, true) or message:find("is not healthy", 1, true)
end

local function correct_grpc(headers)
  local status, message = headers:get(GRPC_STATUS), headers:get("grpc-message") or ""
  local loading = status == NOT_FOUND and not message:find("version %d+ is not found")
  if loading or temporary(message) then
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
  if status == "404" or status == "503" or temporary(message) then
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
