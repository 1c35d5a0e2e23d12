-- +goose Up

-- A session is a process's membership, kept alive by one heartbeat, whatever the process holds.
-- Claims with jobs left to end are among claims_open, which are below claims_clear, and those from claims_clear on: a job of hours does not make
-- every heartbeat look at all claims since.
CREATE TABLE pawl.session (
  ns          smallint    NOT NULL REFERENCES pawl.namespace,
  id          bigint      GENERATED ALWAYS AS IDENTITY,
  name        text        NOT NULL,
  host        text        NOT NULL,
  pid         int         NOT NULL,
  version     text        NOT NULL,
  ttl         interval    NOT NULL,
  started_at  timestamptz NOT NULL,
  expires_at  timestamptz NOT NULL,
  ended_at    timestamptz,
  ended_why   text,
  rescued_at  timestamptz,
  claims_clear bigint     NOT NULL DEFAULT 0,
  claims_open bigint[]    NOT NULL DEFAULT '{}',
  kinds       text[]      NOT NULL DEFAULT '{}',  -- of the steps of sagas for which it has handlers
  PRIMARY KEY (ns, id),
  CONSTRAINT session_name_length CHECK (length(name) <= 256),
  CONSTRAINT session_ttl CHECK (ttl BETWEEN interval '1 second' AND interval '1 hour')
) WITH (fillfactor = 50);
CREATE INDEX session_open ON pawl.session (ns, id) WHERE rescued_at IS NULL;

-- What takes part in a session's end (claims, lock grants) holds this shared; ending the session takes it exclusively, so that
-- what the sweep reads afterwards is all there is. Advisory, not a row lock: many sharers of a row would breed multixacts.
CREATE FUNCTION pawl.session_key(p_session bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashint8extended($1, 7002)';

-- +goose StatementBegin
CREATE FUNCTION pawl.session_start(p_ns smallint, p_name text, p_host text, p_pid int, p_version text, p_ttl interval, p_kinds text[] DEFAULT '{}') RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_id bigint;
BEGIN
  IF NOT EXISTS (SELECT FROM pawl.namespace n WHERE n.ns = p_ns) THEN
    RAISE EXCEPTION 'pawl: namespace % does not exist', p_ns USING ERRCODE = '22023', HINT = 'SELECT pawl.namespace_create(name) makes one.';
  END IF;
  INSERT INTO pawl.session (ns, name, host, pid, version, ttl, started_at, expires_at, kinds)
    VALUES (p_ns, p_name, p_host, p_pid, p_version, p_ttl, now(), clock_timestamp() + p_ttl, p_kinds)
    RETURNING id INTO v_id;
  RETURN v_id;
END $$;
-- +goose StatementEnd

-- Ends a session: nothing that it held counts from the commit on. True if this call ended it.
-- +goose StatementBegin
CREATE FUNCTION pawl.session_end(p_ns smallint, p_session bigint, p_why text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(pawl.session_key(p_session));
  UPDATE pawl.session s SET ended_at = clock_timestamp(), ended_why = p_why
    WHERE s.ns = p_ns AND s.id = p_session AND s.ended_at IS NULL;
  RETURN FOUND;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pawl.session_end, pawl.session_start, pawl.session_key;
DROP TABLE pawl.session;
