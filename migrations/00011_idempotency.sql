-- +goose Up

-- What was answered to a request, by the key that its sender gave it. scope: whose key it is, and for what. Inserted once and never updated; an expired answer is removed by
-- the sweep, or by the next request with its key. The key comes first in the index, since an operator looks by it alone. ns has no foreign key here and below: its check
-- would lock the one row of the namespace in every transaction, and write to it as soon as two do. The other indexes here and below are by -ns: who seeks a row by its
-- primary key could else take one of them, while the table is empty and the planner takes all for equally short.
CREATE TABLE pawl.idempotency_key (
  ns          smallint    NOT NULL,
  key         text        NOT NULL,
  scope       text        NOT NULL,
  fingerprint bytea       NOT NULL,
  status      int         NOT NULL,
  headers     json,
  body        bytea       NOT NULL,
  created_at  timestamptz NOT NULL,
  expires_at  timestamptz NOT NULL,
  PRIMARY KEY (ns, key, scope),
  CONSTRAINT idempotency_key_length CHECK (octet_length(key) BETWEEN 1 AND 255 AND octet_length(scope) <= 1024 AND octet_length(fingerprint) <= 255)
);
CREATE INDEX idempotency_key_expires ON pawl.idempotency_key ((-ns), expires_at);

-- Phased requests in progress: who is at work on the key, under a token that grows with every claim, until when unless it renews; then another goes on from the newest point.
-- The row goes when the answer is stored. Updated by renewals and take-overs only, in no column of an index.
CREATE TABLE pawl.idempotency_claim (
  ns          smallint    NOT NULL,
  key         text        NOT NULL,
  scope       text        NOT NULL,
  fingerprint bytea       NOT NULL,
  token       bigint      NOT NULL,
  holder      text        NOT NULL,
  claims      int         NOT NULL,
  created_at  timestamptz NOT NULL,
  claimed_at  timestamptz NOT NULL,
  until       timestamptz NOT NULL,
  PRIMARY KEY (ns, key, scope),
  CONSTRAINT idempotency_claim_length CHECK (octet_length(key) BETWEEN 1 AND 255 AND octet_length(scope) <= 1024 AND octet_length(fingerprint) <= 255)
) WITH (fillfactor = 70);
CREATE INDEX idempotency_claim_created ON pawl.idempotency_claim ((-ns), created_at);

-- The recovery points that a phased request has reached, in the order of n, each with its phase's output. They go with the answer.
CREATE TABLE pawl.idempotency_point (
  ns     smallint    NOT NULL,
  key    text        NOT NULL,
  scope  text        NOT NULL,
  n      int         NOT NULL,
  name   text        NOT NULL,
  token  bigint      NOT NULL,
  output json,
  at     timestamptz NOT NULL,
  PRIMARY KEY (ns, key, scope, n),
  CONSTRAINT idempotency_point_name_length CHECK (octet_length(name) BETWEEN 1 AND 128)
);

-- What tokens are drawn from; the timeline stands above its low 40 bits, as in lock_token.
CREATE SEQUENCE pawl.idempotency_token;

-- The messages that a consumer has seen.
CREATE TABLE pawl.inbox (
  ns         smallint    NOT NULL,
  consumer   text        NOT NULL,
  message_id text        NOT NULL,
  expires_at timestamptz NOT NULL,
  PRIMARY KEY (ns, consumer, message_id)
);
CREATE INDEX inbox_expires ON pawl.inbox ((-ns), expires_at);

-- Up to where the sweep has removed what expired: it goes on from there, not from rows that are dead but held by an open transaction. whole_at: when it last began from the front.
CREATE TABLE pawl.idempotency_floor (
  ns         smallint    PRIMARY KEY REFERENCES pawl.namespace,
  key_at     timestamptz NOT NULL,
  message_at timestamptz NOT NULL,
  whole_at   timestamptz NOT NULL
) WITH (fillfactor = 50);

-- What the transaction at work on a key holds.
CREATE FUNCTION pawl.idempotency_lock_key(p_ns smallint, p_scope text, p_key text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashtextextended($3, pg_catalog.hashtextextended($2, (7015::bigint << 16) + $1))';

-- What a key is to a request: answered (with the answer), expired (it has one whose time is over), mismatch (it is another request's), claimed (a phased request is at work
-- on it), abandoned (one was, and its claim has run out), free.
-- +goose StatementBegin
CREATE FUNCTION pawl.idempotency_look(p_ns smallint, p_scope text, p_key text, p_fingerprint bytea, OUT what text, OUT status int, OUT headers json, OUT body bytea)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  k record;
BEGIN
  SELECT x.fingerprint = p_fingerprint AS same, x.expires_at > clock_timestamp() AS fresh, x.status, x.headers, x.body INTO k
    FROM pawl.idempotency_key x WHERE x.ns = p_ns AND x.key = p_key AND x.scope = p_scope;
  IF FOUND THEN
    what := CASE WHEN NOT k.fresh THEN 'expired' WHEN k.same THEN 'answered' ELSE 'mismatch' END;
    IF what = 'answered' THEN
      status := k.status;
      headers := k.headers;
      body := k.body;
    END IF;
    RETURN;
  END IF;
  SELECT CASE WHEN c.fingerprint <> p_fingerprint THEN 'mismatch' WHEN c.until > clock_timestamp() THEN 'claimed' ELSE 'abandoned' END INTO what
    FROM pawl.idempotency_claim c WHERE c.ns = p_ns AND c.key = p_key AND c.scope = p_scope;
  what := coalesce(what, 'free');
END $$;
-- +goose StatementEnd

-- Tries to lock a key for the caller's transaction, and looks in a statement after the one that locked. busy: another transaction is at work on it. An expired answer is
-- removed: the key is free.
-- +goose StatementBegin
CREATE FUNCTION pawl.idempotency_try(p_ns smallint, p_scope text, p_key text, p_fingerprint bytea, OUT what text, OUT status int, OUT headers json, OUT body bytea)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
  PERFORM pawl.require_read_committed();
  IF p_scope IS NULL OR octet_length(p_scope) > 1024 OR p_key IS NULL OR octet_length(p_key) NOT BETWEEN 1 AND 255 THEN
    RAISE EXCEPTION 'pawl: a scope has up to 1024 bytes, not %, and a key 1 to 255, not %', coalesce(octet_length(p_scope), 0), coalesce(octet_length(p_key), 0) USING ERRCODE = '22023';
  END IF;
  IF NOT EXISTS (SELECT FROM pawl.namespace n WHERE n.ns = p_ns) THEN
    RAISE EXCEPTION 'pawl: namespace % does not exist', p_ns USING ERRCODE = '22023', HINT = 'SELECT pawl.namespace_create(name) makes one.';
  END IF;
  IF NOT pg_try_advisory_xact_lock(pawl.idempotency_lock_key(p_ns, p_scope, p_key)) THEN
    what := 'busy';
    RETURN;
  END IF;
  SELECT l.* INTO what, status, headers, body FROM pawl.idempotency_look(p_ns, p_scope, p_key, p_fingerprint) l;
  IF what = 'expired' THEN
    DELETE FROM pawl.idempotency_key k WHERE k.ns = p_ns AND k.key = p_key AND k.scope = p_scope;
    DELETE FROM pawl.idempotency_point p WHERE p.ns = p_ns AND p.key = p_key AND p.scope = p_scope;
    what := 'free';
  END IF;
END $$;
-- +goose StatementEnd

-- Ends the session if its transaction stands idle for longer than that, unless it has such a bound already: a process that was frozen or cut off must not hold a key for ever.
-- +goose StatementBegin
CREATE FUNCTION pawl.idempotency_bound(p_idle_ms int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF current_setting('idle_in_transaction_session_timeout') = '0' THEN
    PERFORM set_config('idle_in_transaction_session_timeout', p_idle_ms::text, true);
  END IF;
END $$;
-- +goose StatementEnd

-- Takes a key for the caller's transaction, which is to end with idempotency_store or be rolled back. Without waiting. began: to be handed to idempotency_store.
-- +goose StatementBegin
CREATE FUNCTION pawl.idempotency_take(p_ns smallint, p_scope text, p_key text, p_fingerprint bytea, p_idle_ms int,
  OUT what text, OUT status int, OUT headers json, OUT body bytea, OUT began timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  SELECT t.* INTO what, status, headers, body FROM pawl.idempotency_try(p_ns, p_scope, p_key, p_fingerprint) t;
  IF what = 'free' THEN
    PERFORM pawl.idempotency_bound(p_idle_ms);
  END IF;
  began := now();
END $$;
-- +goose StatementEnd

-- A transaction that was ended within, by SQL, and its successor have other times.
-- +goose StatementBegin
CREATE FUNCTION pawl.idempotency_intact(p_began timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF now() <> p_began THEN
    RAISE EXCEPTION 'pawl: the transaction that took the key was ended before its answer was stored' USING ERRCODE = 'PW005';
  END IF;
END $$;
-- +goose StatementEnd

-- Stores the answer in the transaction that took the key.
-- +goose StatementBegin
CREATE FUNCTION pawl.idempotency_store(p_ns smallint, p_scope text, p_key text, p_fingerprint bytea, p_status int, p_headers json, p_body bytea, p_ttl interval, p_began timestamptz)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pawl.idempotency_intact(p_began);
  INSERT INTO pawl.idempotency_key (ns, key, scope, fingerprint, status, headers, body, created_at, expires_at)
    VALUES (p_ns, p_key, p_scope, p_fingerprint, p_status, p_headers, p_body, now(), clock_timestamp() + p_ttl);
END $$;
-- +goose StatementEnd

-- Claims a key for a phased request: what 'claimed' with the token and the points that were reached ([{"name": …, "output": …}, …]), or 'held' by another's claim, busy,
-- answered or mismatch. To be committed before anything is done under the claim, and durably: what it does elsewhere a crash of this server does not undo.
-- +goose StatementBegin
CREATE FUNCTION pawl.idempotency_claim(p_ns smallint, p_scope text, p_key text, p_fingerprint bytea, p_holder text, p_lease interval,
  OUT what text, OUT status int, OUT headers json, OUT body bytea, OUT token bigint, OUT points json)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_token bigint;
BEGIN
  SELECT t.* INTO what, status, headers, body FROM pawl.idempotency_try(p_ns, p_scope, p_key, p_fingerprint) t;
  IF what = 'claimed' THEN
    what := 'held';
  ELSIF what IN ('free', 'abandoned') THEN
    v_token := (pawl.timeline() << 40) + nextval('pawl.idempotency_token');
    INSERT INTO pawl.idempotency_claim AS c (ns, key, scope, fingerprint, token, holder, claims, created_at, claimed_at, until)
      VALUES (p_ns, p_key, p_scope, p_fingerprint, v_token, p_holder, 1, now(), now(), clock_timestamp() + p_lease)
      ON CONFLICT (ns, key, scope) DO UPDATE SET token = greatest(c.token + 1, EXCLUDED.token), holder = EXCLUDED.holder, claims = c.claims + 1,
        claimed_at = EXCLUDED.claimed_at, until = EXCLUDED.until
      RETURNING c.token INTO token;
    SELECT json_agg(json_build_object('name', p.name, 'output', p.output) ORDER BY p.n) INTO points
      FROM pawl.idempotency_point p WHERE p.ns = p_ns AND p.key = p_key AND p.scope = p_scope;
    what := 'claimed';
    PERFORM pawl.lock_durable();
  END IF;
END $$;
-- +goose StatementEnd

-- Proves that the claim still stands, and keeps others from taking it over until the caller's transaction ends. Raises PW001 if it was lost.
-- +goose StatementBegin
CREATE FUNCTION pawl.idempotency_hold(p_ns smallint, p_scope text, p_key text, p_token bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET lock_timeout = '10s' AS $$
BEGIN
  PERFORM pawl.require_read_committed();
  PERFORM pg_advisory_xact_lock(pawl.idempotency_lock_key(p_ns, p_scope, p_key));
  -- A new statement: it sees whatever was committed by one who took the claim over.
  IF NOT EXISTS (SELECT FROM pawl.idempotency_claim c WHERE c.ns = p_ns AND c.key = p_key AND c.scope = p_scope AND c.token = p_token) THEN
    RAISE EXCEPTION 'pawl: the claim on key % was lost: token % does not hold it any more', p_key, p_token USING ERRCODE = 'PW001';
  END IF;
END $$;
-- +goose StatementEnd

-- Begins a phase in the caller's transaction, which is to end with idempotency_advance. began: to be handed to it.
-- +goose StatementBegin
CREATE FUNCTION pawl.idempotency_enter(p_ns smallint, p_scope text, p_key text, p_token bigint, p_idle_ms int) RETURNS timestamptz
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pawl.idempotency_hold(p_ns, p_scope, p_key, p_token);
  PERFORM pawl.idempotency_bound(p_idle_ms);
  RETURN now();
END $$;
-- +goose StatementEnd

-- Records that a phase is over, the n-th, in its transaction (p_began) or in one of its own (NULL).
-- +goose StatementBegin
CREATE FUNCTION pawl.idempotency_advance(p_ns smallint, p_scope text, p_key text, p_token bigint, p_n int, p_name text, p_output json, p_began timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pawl.idempotency_intact(p_began);
  PERFORM pawl.idempotency_hold(p_ns, p_scope, p_key, p_token);
  INSERT INTO pawl.idempotency_point (ns, key, scope, n, name, token, output, at) VALUES (p_ns, p_key, p_scope, p_n, p_name, p_token, p_output, clock_timestamp());
  PERFORM pawl.lock_durable();
END $$;
-- +goose StatementEnd

-- Prolongs a claim. False: it was lost. A renewal that a crash undoes only ends the claim earlier.
-- +goose StatementBegin
CREATE FUNCTION pawl.idempotency_renew(p_ns smallint, p_scope text, p_key text, p_token bigint, p_lease interval) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET lock_timeout = '5s' AS $$
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  UPDATE pawl.idempotency_claim c SET until = clock_timestamp() + p_lease WHERE c.ns = p_ns AND c.key = p_key AND c.scope = p_scope AND c.token = p_token;
  RETURN FOUND;
END $$;
-- +goose StatementEnd

-- Stores the answer of a phased request, which ends its claim. Raises PW001 if that was lost.
-- +goose StatementBegin
CREATE FUNCTION pawl.idempotency_finish(p_ns smallint, p_scope text, p_key text, p_token bigint, p_status int, p_headers json, p_body bytea, p_ttl interval) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
  PERFORM pawl.idempotency_hold(p_ns, p_scope, p_key, p_token);
  WITH c AS (DELETE FROM pawl.idempotency_claim x WHERE x.ns = p_ns AND x.key = p_key AND x.scope = p_scope RETURNING x.fingerprint)
  INSERT INTO pawl.idempotency_key (ns, key, scope, fingerprint, status, headers, body, created_at, expires_at)
    SELECT p_ns, p_key, p_scope, c.fingerprint, p_status, p_headers, p_body, now(), clock_timestamp() + p_ttl FROM c;
  PERFORM pawl.lock_durable();
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
  IF NOT EXISTS (SELECT FROM pawl.namespace n WHERE n.ns = p_ns) THEN
    RAISE EXCEPTION 'pawl: namespace % does not exist', p_ns USING ERRCODE = '22023', HINT = 'SELECT pawl.namespace_create(name) makes one.';
  END IF;
  INSERT INTO pawl.inbox (ns, consumer, message_id, expires_at) VALUES (p_ns, p_consumer, p_message_id, clock_timestamp() + p_keep)
    ON CONFLICT (ns, consumer, message_id) DO NOTHING;
  RETURN FOUND;
END $$;
-- +goose StatementEnd

-- The sweep "idempotency": removes up to p_limit answers, with their points, and as many messages, that have expired, and claims that nobody has taken up for p_keep. What an
-- open transaction is at work on stays. Once an hour it begins from the front, for what was committed after its time. NULL: another node is at it. Without bitmap scans: a batch would read and sort
-- all that is old.
-- +goose StatementBegin
CREATE FUNCTION pawl.sweep_idempotency(p_ns smallint, p_keep interval, p_limit int) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_custom_plan SET lock_timeout = '2s' AS $$
DECLARE
  f     pawl.idempotency_floor;
  v_now timestamptz := clock_timestamp();
  v_at  timestamptz;
  v_n   bigint;
  v_did bigint;
BEGIN
  PERFORM pawl.require_read_committed();
  IF NOT pg_try_advisory_xact_lock(pawl.sweep_key(p_ns, 'idempotency')) THEN
    RETURN NULL;
  END IF;
  SELECT x.* INTO f FROM pawl.idempotency_floor x WHERE x.ns = p_ns;
  IF NOT FOUND THEN
    INSERT INTO pawl.idempotency_floor VALUES (p_ns, '-infinity', '-infinity', v_now) RETURNING * INTO f;
  ELSIF f.whole_at < v_now - interval '1 hour' THEN
    f := ROW(p_ns, '-infinity', '-infinity', v_now);
  END IF;
  -- A row that is locked is being replaced; one that was replaced since this statement began is gone when it is locked.
  WITH gone AS (
    DELETE FROM pawl.idempotency_key k USING (
        SELECT x.key, x.scope FROM pawl.idempotency_key x WHERE -x.ns = -p_ns AND x.expires_at >= f.key_at AND x.expires_at < v_now
        ORDER BY x.expires_at LIMIT p_limit FOR UPDATE SKIP LOCKED) o
      WHERE k.ns = p_ns AND k.key = o.key AND k.scope = o.scope
      RETURNING k.key, k.scope, k.expires_at),
  points AS (DELETE FROM pawl.idempotency_point p USING gone g WHERE p.ns = p_ns AND p.key = g.key AND p.scope = g.scope)
  SELECT count(*), max(g.expires_at) INTO v_did, v_at FROM gone g;
  f.key_at := CASE WHEN v_did < p_limit THEN v_now ELSE v_at END;
  WITH gone AS (
    DELETE FROM pawl.inbox i USING (
        SELECT x.consumer, x.message_id FROM pawl.inbox x WHERE -x.ns = -p_ns AND x.expires_at >= f.message_at AND x.expires_at < v_now
        ORDER BY x.expires_at LIMIT p_limit FOR UPDATE SKIP LOCKED) o
      WHERE i.ns = p_ns AND i.consumer = o.consumer AND i.message_id = o.message_id
      RETURNING i.expires_at)
  SELECT count(*), max(g.expires_at) INTO v_n, v_at FROM gone g;
  f.message_at := CASE WHEN v_n < p_limit THEN v_now ELSE v_at END;
  v_did := v_did + v_n;
  WITH gone AS (
    DELETE FROM pawl.idempotency_claim c USING (
        SELECT x.key, x.scope FROM pawl.idempotency_claim x WHERE -x.ns = -p_ns AND x.created_at < v_now - p_keep AND x.until < v_now - p_keep
        ORDER BY x.created_at LIMIT p_limit FOR UPDATE SKIP LOCKED) o
      WHERE c.ns = p_ns AND c.key = o.key AND c.scope = o.scope
      RETURNING c.key, c.scope),
  points AS (DELETE FROM pawl.idempotency_point p USING gone g WHERE p.ns = p_ns AND p.key = g.key AND p.scope = g.scope)
  SELECT count(*) INTO v_n FROM gone;
  UPDATE pawl.idempotency_floor x SET key_at = f.key_at, message_at = f.message_at, whole_at = f.whole_at WHERE x.ns = p_ns;
  RETURN v_did + v_n;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pawl.sweep_idempotency, pawl.once, pawl.idempotency_finish, pawl.idempotency_renew, pawl.idempotency_advance, pawl.idempotency_enter, pawl.idempotency_hold,
  pawl.idempotency_claim, pawl.idempotency_store, pawl.idempotency_intact, pawl.idempotency_take, pawl.idempotency_bound, pawl.idempotency_try, pawl.idempotency_look, pawl.idempotency_lock_key;
DROP TABLE pawl.idempotency_floor, pawl.inbox, pawl.idempotency_point, pawl.idempotency_claim, pawl.idempotency_key;
DROP SEQUENCE pawl.idempotency_token;
