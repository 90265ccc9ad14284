-- Gives every answer to a REST caller its status, its headers and, on an error, its body. `edge`, above this script
-- (replies.py), holds the bodies of each dialect; a route's metadata (routes.py) says which dialect it speaks.

local SPACE = "satchel.edge"

-- What services and Envoy tell this script; no caller ever sees it.
local INNER = {
  "x-error-body", "x-http-status", "x-edge-status", "x-edge-id", "x-file-content-type", "x-file-content-length",
}
-- What a JSON answer has no use for.
local GRPC = { "grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-accept-encoding", "grpc-encoding" }

-- How the transcoder words what it could not read, by the fault it amounts to; a capture is the name of the field.
-- The values of the request that it quotes follow these words, so nothing that a caller sends can pass for them.
local FAULTS = {
  { "^([%w_][%w_%.%[%]]*): invalid value ", "wrong_type" },
  { "^[%w_%.%[%]]*: invalid value Starting an object on a scalar field for type ([%w_]+)$", "wrong_type" },
  { '^Could not find field "([%w_][%w_%.]*)" in the type ', "unknown_parameter" },
  { "^[^\n]*: Proto field is not repeating, cannot start list", "unexpected_list" },
  { "^: Root element must be a message", "not_an_object" },
  { "^Encountered non UTF%-8 code points", "not_utf8" },
  { "^Message too deep", "too_deep" },
  { "^[^\n]*\n.*\n *%^$", "not_json" },
}
local MAX_FIELD = 100

local function starts_with(text, prefix)
  return text ~= nil and text:sub(1, #prefix) == prefix
end

local function camel(path)
  return (path:gsub("_(%w)", string.upper))
end

-- The body for a fault that the transcoder describes in `text`, and the field it names; nothing for any other text.
local function fault_in(text, answers, names)
  for _, fault in ipairs(FAULTS) do
    local found, _, field = text:find(fault[1])
    if found and #(field or "") <= MAX_FIELD then
      if field and names == "camel" then field = camel(field) end
      return answers.faults[fault[2]], field
    end
  end
end

-- Moves what a service sent behind its answer to where a JSON caller looks for it. A call that failed before its
-- headers went out has everything in the headers already.
local function unpack_trailers(headers, trailers)
  local sent = {}
  for name, value in pairs(trailers) do sent[name] = value end
  for name, value in pairs(sent) do
    trailers:remove(name)
    if not starts_with(name, "grpc-") then headers:replace(name, value) end
  end
end

-- The body of an error and, where it is not the answer's own one, its status.
local function error_of(headers, status, request_id, route, refusal)
  local said = headers:get("x-error-body")
  if said and not refusal then return said, headers:get("x-http-status") or status end

  local answers = edge.dialects[route.dialect or edge.default_dialect]
  local answer = answers.statuses[status] or answers.statuses[status < 500 and 400 or 500]
  local fault, field
  if refusal and status == 400 then fault, field = fault_in(refusal, answers, route.names) end
  if answer.retry_after then headers:replace("retry-after", tostring(answer.retry_after)) end
  local values = { field = field, request_id = request_id, timestamp = os.date("!%Y-%m-%dT%H:%M:%SZ") }
  return ((fault or answer.body):gsub("%$([%l_]+)", values)), answer.status or status
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local native = starts_with(headers:get("content-type"), "application/grpc")
  local unwanted = {}
  for name in pairs(headers) do
    -- What HTTP lets a header be called and gRPC does not would end the call as a failure of ours.
    local unspeakable = name:find("^:?[%w_.-]+$") == nil
    local grpc = not native and (starts_with(name, "grpc-") or name:sub(-4) == "-bin")
    if unspeakable or grpc then unwanted[#unwanted + 1] = name end
  end
  for _, name in ipairs(unwanted) do headers:remove(name) end
  local known = handle:streamInfo():dynamicMetadata()
  known:set(SPACE, "request_id", headers:get("x-request-id"))
  known:set(SPACE, "native", native)
  known:set(SPACE, "head", headers:get(":method") == "HEAD")
  -- A body that says it is too large is refused unread; the buffer filter counts one that does not say.
  local length = tonumber(headers:get("content-length") or 0)
  if not native and length and length > edge.max_request_bytes and not handle:metadata():get("streamed") then
    handle:respond({ [":status"] = "413" }, "")
  end
end

function envoy_on_response(handle)
  -- Empty for a request that Envoy refused before it was read.
  local known = handle:streamInfo():dynamicMetadata():get(SPACE) or {}
  local failed = tonumber(handle:headers():get(":status")) >= 400
  local text = ""
  -- A streamed answer of this kind has no message at all.
  local unchanged = handle:headers():get("x-http-status") == "304" and not handle:metadata():get("streamed")
  if (known.head or (unchanged and not known.native)) and not failed then
    -- The service does not know that nobody reads it.
    handle:body(true):setBytes("")
  end
  if failed and not known.native then
    -- Waiting for the end of the answer ends the life of every object fetched before, so this comes first.
    local body = handle:body(true)
    text = body:getBytes(0, body:length())
    local trailers = handle:trailers()
    if trailers then unpack_trailers(handle:headers(), trailers) end
  end

  local headers = handle:headers()
  local request_id = known.request_id or headers:get("x-edge-id") or ""
  headers:replace("x-request-id", request_id)
  if not known.native then
    local status = tonumber(headers:get(":status"))
    if failed then
      local route = { dialect = handle:metadata():get("dialect"), names = handle:metadata():get("names") }
      local refusal = headers:get("x-edge-status") and text or nil
      local body, better = error_of(headers, status, request_id, route, refusal)
      headers:replace(":status", tostring(better))
      headers:replace("content-type", "application/json")
      headers:replace("content-length", tostring(#body))
      handle:body(true):setBytes(known.head and "" or body)
    else
      headers:replace(":status", tostring(headers:get("x-http-status") or status))
      -- The transcoder does not know how long a file is, nor what kind of file has no bytes in this answer.
      for _, name in ipairs({ "content-type", "content-length" }) do
        local said = headers:get("x-file-" .. name)
        if said then headers:replace(name, said) end
      end
    end
    for _, name in ipairs(GRPC) do headers:remove(name) end
  end
  for _, name in ipairs(INNER) do headers:remove(name) end
end
