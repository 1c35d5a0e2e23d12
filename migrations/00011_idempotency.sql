-- +goose Up

-- What was answered to a request, by the key that its sender gave it. scope: whose key it is, and for what.
CREATE TABLE pawl.idempotency_key (
  ns          smallint    NOT NULL REFERENCES pawl.namespace,
  scope       text        NOT NULL,
  key         text        NOT NULL,
  fingerprint bytea       NOT NULL,
  status      int         NOT NULL,
  headers     json,
  body        bytea       NOT NULL,
  created_at  timestamptz NOT NULL,
  expires_at  timestamptz NOT NULL,
  PRIMARY KEY (ns, scope, key)
);
CREATE INDEX idempotency_key_expires ON pawl.idempotency_key (ns, expires_at);

-- The messages that a consumer has seen.
CREATE TABLE pawl.inbox (
  ns         smallint    NOT NULL REFERENCES pawl.namespace,
  consumer   text        NOT NULL,
  message_id text        NOT NULL,
  expires_at timestamptz NOT NULL,
  PRIMARY KEY (ns, consumer, message_id)
);
CREATE INDEX inbox_expires ON pawl.inbox (ns, expires_at);

-- What the transaction at work on a key holds.
CREATE FUNCTION pawl.idempotency_lock_key(p_ns smallint, p_scope text, p_key text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashtextextended($3, pg_catalog.hashtextextended($2, (7015::bigint << 16) + $1))';

-- The answer that is stored for a key and not expired.
-- +goose StatementBegin
CREATE FUNCTION pawl.idempotency_look(p_ns smallint, p_scope text, p_key text)
RETURNS TABLE (fingerprint bytea, status int, headers json, body bytea, created_at timestamptz) LANGUAGE sql VOLATILE BEGIN ATOMIC
  SELECT k.fingerprint, k.status, k.headers, k.body, k.created_at FROM pawl.idempotency_key k
    WHERE k.ns = p_ns AND k.scope = p_scope AND k.key = p_key AND k.expires_at > clock_timestamp();
END;
-- +goose StatementEnd

-- Takes a key for the caller's transaction, waiting up to p_wait_ms for another that has it. False: it has it still. Look afterwards, in a statement of its own.
-- +goose StatementBegin
CREATE FUNCTION pawl.idempotency_take(p_ns smallint, p_scope text, p_key text, p_wait_ms int) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pawl.require_read_committed();
  IF p_scope IS NULL OR octet_length(p_scope) > 1024 OR p_key IS NULL OR octet_length(p_key) NOT BETWEEN 1 AND 255 THEN
    RAISE EXCEPTION 'pawl: a scope has up to 1024 bytes, not %, and a key 1 to 255, not %', coalesce(octet_length(p_scope), 0), coalesce(octet_length(p_key), 0) USING ERRCODE = '22023';
  END IF;
  IF pg_try_advisory_xact_lock(pawl.idempotency_lock_key(p_ns, p_scope, p_key)) THEN
    RETURN true;
  END IF;
  IF p_wait_ms <= 0 THEN
    RETURN false;
  END IF;
  BEGIN
    PERFORM set_config('lock_timeout', p_wait_ms::text, true);
    PERFORM pg_advisory_xact_lock(pawl.idempotency_lock_key(p_ns, p_scope, p_key));
    PERFORM set_config('lock_timeout', '0', true);
    RETURN true;
  EXCEPTION WHEN lock_not_available THEN
    RETURN false;
  END;
END $$;
-- +goose StatementEnd

-- Stores the answer in the transaction that has the key; an expired one is replaced.
-- +goose StatementBegin
CREATE FUNCTION pawl.idempotency_store(p_ns smallint, p_scope text, p_key text, p_fingerprint bytea, p_status int, p_headers json, p_body bytea, p_ttl interval) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO pawl.idempotency_key (ns, scope, key, fingerprint, status, headers, body, created_at, expires_at)
    VALUES (p_ns, p_scope, p_key, p_fingerprint, p_status, p_headers, p_body, now(), clock_timestamp() + p_ttl)
  ON CONFLICT (ns, scope, key) DO UPDATE SET fingerprint = EXCLUDED.fingerprint, status = EXCLUDED.status, headers = EXCLUDED.headers, body = EXCLUDED.body,
    created_at = EXCLUDED.created_at, expires_at = EXCLUDED.expires_at;
END $$;
-- +goose StatementEnd

-- Notes that a consumer sees a message. False: it has before. Another transaction that notes the same is waited for.
-- +goose StatementBegin
CREATE FUNCTION pawl.once(p_ns smallint, p_consumer text, p_message_id text, p_keep interval) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF p_consumer IS NULL OR octet_length(p_consumer) NOT BETWEEN 1 AND 255 OR p_message_id IS NULL OR octet_length(p_message_id) NOT BETWEEN 1 AND 1024 THEN
    RAISE EXCEPTION 'pawl: a consumer''s name has 1 to 255 bytes, not %, and a message id 1 to 1024, not %', coalesce(octet_length(p_consumer), 0),
      coalesce(octet_length(p_message_id), 0) USING ERRCODE = '22023';
  END IF;
  INSERT INTO pawl.inbox (ns, consumer, message_id, expires_at) VALUES (p_ns, p_consumer, p_message_id, clock_timestamp() + p_keep)
    ON CONFLICT (ns, consumer, message_id) DO NOTHING;
  RETURN FOUND;
END $$;
-- +goose StatementEnd

-- The sweep "idempotency": removes up to p_limit keys and as many messages that have expired. A key that a transaction is at work on stays. NULL: another node is at it.
-- +goose StatementBegin
CREATE FUNCTION pawl.sweep_idempotency(p_ns smallint, p_limit int) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
  k     record;
  v_did bigint := 0;
  v_n   bigint;
BEGIN
  IF NOT pg_try_advisory_xact_lock(pawl.sweep_key(p_ns, 'idempotency')) THEN
    RETURN NULL;
  END IF;
  FOR k IN SELECT x.scope, x.key FROM pawl.idempotency_key x WHERE x.ns = p_ns AND x.expires_at < clock_timestamp() ORDER BY x.expires_at LIMIT p_limit LOOP
    CONTINUE WHEN NOT pg_try_advisory_xact_lock(pawl.idempotency_lock_key(p_ns, k.scope, k.key));
    DELETE FROM pawl.idempotency_key x WHERE x.ns = p_ns AND x.scope = k.scope AND x.key = k.key AND x.expires_at < clock_timestamp();
    GET DIAGNOSTICS v_n = ROW_COUNT;
    v_did := v_did + v_n;
  END LOOP;
  DELETE FROM pawl.inbox i WHERE i.ns = p_ns AND i.expires_at < clock_timestamp() AND (i.consumer, i.message_id) IN (
    SELECT x.consumer, x.message_id FROM pawl.inbox x WHERE x.ns = p_ns AND x.expires_at < clock_timestamp() ORDER BY x.expires_at LIMIT p_limit FOR UPDATE SKIP LOCKED);
  GET DIAGNOSTICS v_n = ROW_COUNT;
  RETURN v_did + v_n;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pawl.sweep_idempotency, pawl.once, pawl.idempotency_store, pawl.idempotency_take, pawl.idempotency_look, pawl.idempotency_lock_key;
DROP TABLE pawl.inbox, pawl.idempotency_key;
