-- SPDX-License-Identifier: Apache-2.0
-- What Triton 2.51 answers with another status than clients need to decide whether to try again.
-- Only models that are served are routed to, so "not found" means that a model is being loaded.

local GRPC_STATUS = "grpc-status"
local NOT_FOUND, INTERNAL, UNAVAILABLE = "5", "13", "14"

local function temporary(message)
  return message:find("no available versions", 1, true) or message:find("is not healthy", 1, true)
end

local function correct_grpc(fields)
  local status, message = fields:get(GRPC_STATUS), fields:get("grpc-message") or ""
  local loading = status == NOT_FOUND and not message:find("version %d+ is not found")
  if loading or (status == INTERNAL and temporary(message)) then
    fields:replace(GRPC_STATUS, UNAVAILABLE)
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
  if (headers:get("content-type") or ""):find("application/grpc", 1, true) ~= 1 then
    return correct_http(handle)
  end
  correct_grpc(headers)
  local trailers = handle:trailers()
  if trailers then
    correct_grpc(trailers)
  end
end
