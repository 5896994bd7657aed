-- Checks the signature of a request (`GatewaySignatures`). KEYS, a table of DER by name, and MAX_SKEW_S stand in front of this text.
local function unhex(text)
  if #text % 2 == 1 or text:find("[^0-9a-fA-F]") then return nil end
  return (text:gsub("..", function(pair) return string.char(tonumber(pair, 16)) end))
end

local function problem(handle)
  local headers = handle:headers()
  local name, time, given = headers:get("x-signature-key"), headers:get("x-signature-time"), headers:get("x-signature")
  if name == nil or time == nil or given == nil then return "x-signature-key, x-signature-time and x-signature are required" end
  local seconds = time:find("^%d+$") and tonumber(time)
  if not seconds then return "x-signature-time is no Unix time in seconds" end
  if math.abs(tonumber(handle:timestampString()) / 1000 - seconds) > MAX_SKEW_S then return "x-signature-time is too far from now" end
  local der, signature = KEYS[name], unhex(given)
  if der == nil then return "x-signature-key names no key" end
  if signature == nil then return "x-signature is not hexadecimal" end
  -- Waiting for the body ends the life of the headers' object.
  local method, path = headers:get(":method"), headers:get(":path")
  local buffer = handle:body()
  local body = ""
  if buffer ~= nil and buffer:length() > 0 then body = buffer:getBytes(0, buffer:length()) end
  local signed = table.concat({ time, method, path, body }, "\n")
  local key = handle:importPublicKey(der, #der):get()
  local good = handle:verifySignature("sha256", key, signature, #signature, signed, #signed)
  if not good then return "the signature does not fit" end
  return nil
end

function envoy_on_request(handle)
  -- Envoy lets a request pass whose script fails.
  local ran, refused = pcall(problem, handle)
  if not ran then
    handle:logErr("the signature could not be checked: " .. tostring(refused))
    refused = "the signature could not be checked"
  end
  if refused ~= nil then
    handle:respond({ [":status"] = "401", ["content-type"] = "text/plain" }, refused .. "\n")
    return
  end
  for _, name in ipairs({ "x-signature-key", "x-signature-time", "x-signature" }) do handle:headers():remove(name) end
end
