-- +goose Up

CREATE TYPE pawl.lock_mode AS ENUM ('exclusive', 'shared', 'semaphore');

-- Who holds a lock. until: when a maximum hold is over. delay_ms: how long nobody gets the lock after this holder was lost. waiter: whose wait it ended.
CREATE TYPE pawl.lock_holder AS (
  session_id bigint, token bigint, owner text, since timestamptz, until timestamptz, delay_ms int, waiter bigint
);

-- A lock is what its newest row says; each change appends one, under the name's key. Nothing is updated: a row that is falls from 8,900 to 800 pairs/s
-- within 15 s of a transaction held open. A sweep removes the older ones.
-- key: lock_key of its name, whose comparison takes a fraction of the name's. token: the newest grant's. served: waiters up to this one have been granted the lock or are gone. free_at: nobody is granted before.
-- granted_to: the session, if this row grants.
CREATE TABLE pawl.lock_state (
  key        bigint             NOT NULL,
  id         bigint             NOT NULL,
  ns         smallint           NOT NULL,
  name       text               NOT NULL,
  at         timestamptz        NOT NULL,
  what       text               NOT NULL,  -- granted, released, expired, lost, forced, passed
  token      bigint             NOT NULL,
  served     bigint             NOT NULL,
  mode       pawl.lock_mode     NOT NULL,
  holders    pawl.lock_holder[] NOT NULL,
  free_at    timestamptz,
  granted_to bigint,
  reason     text,
  PRIMARY KEY (key, id)
);
CREATE INDEX lock_state_granted ON pawl.lock_state (granted_to) WHERE granted_to IS NOT NULL;

-- Who waits, in the order of id. A row up to its lock's served is history.
CREATE TABLE pawl.lock_waiter (
  key        bigint         NOT NULL,
  id         bigint         NOT NULL,
  ns         smallint       NOT NULL,
  name       text           NOT NULL,
  session_id bigint         NOT NULL,
  owner      text           NOT NULL,
  mode       pawl.lock_mode NOT NULL,
  permits    int            NOT NULL,
  hold_ms    int,
  delay_ms   int            NOT NULL,
  at         timestamptz    NOT NULL,
  PRIMARY KEY (key, id)
);
CREATE INDEX lock_waiter_owner ON pawl.lock_waiter (owner);
CREATE INDEX lock_waiter_session ON pawl.lock_waiter (session_id);

-- Ids of states and waiters: drawn under the name's key, so those of a name ascend in the order of what happened.
CREATE SEQUENCE pawl.lock_id;
-- What tokens are drawn from; the timeline stands above its low 40 bits.
CREATE SEQUENCE pawl.lock_token;

-- The newest token written to a resource outside; see lock_guard.
CREATE TABLE pawl.lock_guard (
  ns       smallint NOT NULL,
  resource text     NOT NULL,
  token    bigint   NOT NULL,
  PRIMARY KEY (ns, resource)
) WITH (fillfactor = 50);

-- Keys. A name's is held while its state changes; a grant's is shared by transactions that assert it, and whoever takes the grant away needs it alone.
-- Order: names' keys ascending, sessions' keys, the key of those who wait while they hold. A grant's key is only ever tried.
CREATE FUNCTION pawl.lock_key(p_ns smallint, p_name text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashtextextended($2, (7010::bigint << 16) + $1)';
CREATE FUNCTION pawl.lock_grant_key(p_ns smallint, p_name text, p_token bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashtextextended($2, $3 # $1)';

-- The newest state of a lock; no row while it has none. By key alone: with the name as a filter the planner reads and sorts the whole history. Postgres puts it
-- in place of its call.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_now(p_ns smallint, p_name text) RETURNS SETOF pawl.lock_state LANGUAGE sql STABLE BEGIN ATOMIC
  SELECT s.* FROM pawl.lock_state s WHERE s.key = pawl.lock_key(p_ns, p_name) ORDER BY s.id DESC LIMIT 1;
END;
-- +goose StatementEnd

-- The timeline of this server. VOLATILE, as what it calls is: else Postgres would not put it in place of its call, and parse it in each transaction.
-- +goose StatementBegin
CREATE FUNCTION pawl.timeline() RETURNS bigint LANGUAGE sql VOLATILE BEGIN ATOMIC
  SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint;
END;
-- +goose StatementEnd

-- The next fencing token of a lock whose newest is p_last: it rises with every grant, also when a standby that has not got the last ones is promoted (its
-- timeline is above) and when the lock's history was removed (the sequence goes on). The timeline is read from the name of the current WAL file,
-- which is right at once after a promotion.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_token_next(p_last bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN greatest(p_last + 1, (pawl.timeline() << 40) + nextval('pawl.lock_token'));
END $$;
-- +goose StatementEnd

-- Whether one more may hold the lock in this mode.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_fits(s pawl.lock_state, p_mode pawl.lock_mode, p_permits int, p_owner text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN cardinality(s.holders) = 0
    OR p_mode = 'shared' AND s.mode = 'shared'
    OR p_mode = 'semaphore' AND s.mode = 'semaphore' AND cardinality(s.holders) < p_permits
    OR (SELECT bool_and(h.owner = p_owner) FROM unnest(s.holders) h);
END $$;
-- +goose StatementEnd

-- The mode of a lock when one more holds it. Others of its owner may, in another mode: then it is as strict as can be.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_joined(s pawl.lock_state, p_mode pawl.lock_mode) RETURNS pawl.lock_mode
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN CASE WHEN cardinality(s.holders) = 0 OR s.mode = p_mode THEN p_mode ELSE 'exclusive' END;
END $$;
-- +goose StatementEnd

-- Has the transaction commit synchronously, also where the default is another: what was granted must not be granted again after a crash.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_durable() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF current_setting('synchronous_commit') = 'off' THEN
    PERFORM set_config('synchronous_commit', 'local', true);
  END IF;
END $$;
-- +goose StatementEnd

-- Appends a state.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_append(s pawl.lock_state, p_what text, p_granted_to bigint, p_reason text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO pawl.lock_state (key, id, ns, name, at, what, token, served, mode, holders, free_at, granted_to, reason)
    VALUES (s.key, nextval('pawl.lock_id'), s.ns, s.name, clock_timestamp(), p_what, s.token, s.served, s.mode, s.holders, s.free_at, p_granted_to, p_reason);
END $$;
-- +goose StatementEnd

-- Grants the lock to the first waiters that fit, in their order, passes over those whose session has ended, and appends what changed: p_what tells what happened
-- before, NULL that nothing did. Who gets it is hinted on the channel of its session alone. Gives the number of grants.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_serve(s pawl.lock_state, p_what text, p_reason text DEFAULT NULL) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  w       record;
  v_n     int := 0;
  v_since timestamptz;
BEGIN
  WHILE s.free_at IS NULL OR s.free_at <= clock_timestamp() LOOP
    s.free_at := NULL;
    SELECT x.* INTO w FROM pawl.lock_waiter x WHERE x.key = s.key AND x.id > s.served ORDER BY x.id LIMIT 1;
    EXIT WHEN NOT FOUND;
    PERFORM pg_advisory_xact_lock_shared(pawl.session_key(w.session_id));
    IF NOT EXISTS (SELECT FROM pawl.session z WHERE z.ns = s.ns AND z.id = w.session_id AND z.ended_at IS NULL) THEN
      s.served := w.id;
      p_what := coalesce(p_what, 'passed');
      CONTINUE;
    END IF;
    EXIT WHEN NOT pawl.lock_fits(s, w.mode, w.permits, w.owner);
    IF p_what IN ('lost', 'expired', 'forced') THEN  -- told apart from the hand-over it leads to
      PERFORM pawl.lock_append(s, p_what, NULL, p_reason);
    END IF;
    v_since := clock_timestamp();
    s.token := pawl.lock_token_next(s.token);
    s.served := w.id;
    s.mode := pawl.lock_joined(s, w.mode);
    s.holders := s.holders || ROW(w.session_id, s.token, w.owner, v_since, v_since + w.hold_ms * interval '1 ms', w.delay_ms, w.id)::pawl.lock_holder;
    PERFORM pawl.lock_append(s, 'granted', w.session_id, NULL);
    PERFORM pg_notify(format('pawl_%s_s%s', s.ns, w.session_id), format('l%s %s', w.id, s.token));
    p_what := NULL;
    v_n := v_n + 1;
  END LOOP;
  IF p_what IS NOT NULL THEN
    PERFORM pawl.lock_append(s, p_what, NULL, p_reason);
  END IF;
  IF v_n > 0 THEN
    PERFORM pawl.lock_durable();
  END IF;
  RETURN v_n;
END $$;
-- +goose StatementEnd

-- The lock without the holders whose session has ended or whose maximum hold is over; what says what happened to them (NULL: nothing). A holder that asserts
-- its grant in an open transaction stays until that ends.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_reap(s pawl.lock_state) RETURNS pawl.lock_state
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  h      pawl.lock_holder;
  v_lost boolean;
BEGIN
  s.what := NULL;
  FOREACH h IN ARRAY s.holders LOOP
    v_lost := NOT EXISTS (SELECT FROM pawl.session z WHERE z.ns = s.ns AND z.id = h.session_id AND z.ended_at IS NULL);
    IF (v_lost OR h.until <= clock_timestamp()) AND pg_try_advisory_xact_lock(pawl.lock_grant_key(s.ns, s.name, h.token)) THEN
      s.what := CASE WHEN v_lost THEN 'lost' ELSE 'expired' END;
      s.holders := array_remove(s.holders, h);
      IF h.delay_ms > 0 THEN
        s.free_at := greatest(s.free_at, clock_timestamp() + h.delay_ms * interval '1 ms');
      END IF;
    END IF;
  END LOOP;
  RETURN s;
END $$;
-- +goose StatementEnd

-- The ring of owners that would wait for each other if p_owner waited for p_name behind waiter p_before, in words, NULL if there is none. At most 1,000
-- waits are looked at, and none that any of several holders of a semaphore may end.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_ring(p_ns smallint, p_owner text, p_name text, p_before bigint) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
  v_owners text[] := ARRAY[p_owner];
  v_names  text[] := ARRAY[p_name];  -- what each of them waits for
  v_limits bigint[] := ARRAY[p_before];
  v_from   int[] := ARRAY[0];
  i        int := 1;
  k        int;
  n        record;
  v_path   text;
BEGIN
  WHILE i <= cardinality(v_owners) AND i <= 1000 LOOP
    FOR n IN
      SELECT o.owner, w.name, w.id
      FROM (
        SELECT h.owner FROM pawl.lock_now(p_ns, v_names[i]) s CROSS JOIN LATERAL unnest(s.holders) h
          WHERE s.mode <> 'semaphore' OR cardinality(s.holders) = 1
        UNION
        SELECT x.owner FROM pawl.lock_waiter x
          WHERE x.key = pawl.lock_key(p_ns, v_names[i]) AND x.id < v_limits[i] AND x.id > coalesce((SELECT s.served FROM pawl.lock_now(p_ns, v_names[i]) s), 0)) o
      LEFT JOIN LATERAL (
        SELECT x.name, x.id FROM pawl.lock_waiter x WHERE x.ns = p_ns AND x.owner = o.owner
          AND x.id > coalesce((SELECT s.served FROM pawl.lock_now(p_ns, x.name) s), 0) OFFSET 0) w ON true  -- owner by owner, else Postgres may read all waits once for all
      WHERE (o.owner <> v_owners[i] OR i > 1)
    LOOP
      IF n.owner = p_owner THEN
        k := i;
        v_path := format('%s, held or wanted first by %s', v_names[k], p_owner);
        WHILE v_from[k] > 0 LOOP
          v_path := format('%s, held or wanted first by %s, who waits for %s', v_names[v_from[k]], v_owners[k], v_path);
          k := v_from[k];
        END LOOP;
        RETURN format('%s waits for %s', p_owner, v_path);
      END IF;
      IF n.name IS NOT NULL AND n.id <> ALL (v_limits) THEN
        v_owners := v_owners || n.owner;
        v_names := v_names || n.name;
        v_limits := v_limits || n.id;
        v_from := v_from || i;
      END IF;
    END LOOP;
    i := i + 1;
  END LOOP;
  RETURN NULL;
END $$;
-- +goose StatementEnd

-- The lock for a living session if it is free: how far waiters were served, and the newest token. Nobody waits for a free lock.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_free(p_ns smallint, p_session bigint, p_name text) RETURNS TABLE (served bigint, token bigint) LANGUAGE sql STABLE BEGIN ATOMIC
  SELECT coalesce(y.served, 0), coalesce(y.token, 0)
  FROM (VALUES (1)) one
  LEFT JOIN LATERAL (SELECT x.* FROM pawl.lock_state x WHERE x.key = pawl.lock_key(p_ns, p_name) ORDER BY x.id DESC LIMIT 1) y ON true
  WHERE EXISTS (SELECT FROM pawl.session z WHERE z.ns = p_ns AND z.id = p_session AND z.ended_at IS NULL)
    AND (y.key IS NULL OR y.holders = '{}' AND y.free_at IS NULL AND y.name = p_name AND y.ns = p_ns);
END;
-- +goose StatementEnd

-- The lock if a living session alone holds it under this token, and nobody waits.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_sole(p_ns smallint, p_session bigint, p_name text, p_token bigint) RETURNS TABLE (served bigint, mode pawl.lock_mode) LANGUAGE sql STABLE BEGIN ATOMIC
  SELECT y.served, y.mode
  FROM (SELECT x.* FROM pawl.lock_state x WHERE x.key = pawl.lock_key(p_ns, p_name) ORDER BY x.id DESC LIMIT 1) y
  WHERE EXISTS (SELECT FROM pawl.session z WHERE z.ns = p_ns AND z.id = p_session AND z.ended_at IS NULL)
    AND cardinality(y.holders) = 1 AND (y.holders[1]).token = p_token AND (y.holders[1]).session_id = p_session AND y.token = p_token AND y.free_at IS NULL
    AND y.name = p_name AND y.ns = p_ns AND NOT EXISTS (SELECT FROM pawl.lock_waiter w WHERE w.key = y.key AND w.id > y.served);
END;
-- +goose StatementEnd

-- Does what a request of a session asks for:
--   acquire   granted (token) | waiting (number: the waiter) | held (by whom) | deadlock (the ring)
--   release   released | asserted (an open transaction asserts this grant: wait for it, then ask again) | gone (it was lost before); p_number: the token
--   poll      granted (token, info: ms left of a maximum hold) | waiting | gone; p_number: the waiter. Also does what time has made due.
--   cancel    cancelled | granted (token: it came first); p_number: the waiter
-- p_waits: whether acquire waits; p_holds: whether its owner holds other locks, so that a ring may form. The transaction commits synchronously if it granted
-- anything. Must be a READ COMMITTED transaction of its own. Raises PW004 when the session has ended.
-- A free lock, and a release that nobody waits for, take one statement; most ask for these.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_ask(p_ns smallint, p_session bigint, p_op text, p_name text, p_owner text, p_mode pawl.lock_mode, p_permits int,
  p_waits boolean, p_holds boolean, p_hold_ms int, p_delay_ms int, p_number bigint, OUT status text, OUT number bigint, OUT info text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET lock_timeout = '5s' AS $$
DECLARE
  c_key CONSTANT bigint := pawl.lock_key(p_ns, p_name);
  s        pawl.lock_state;
  h        pawl.lock_holder;
  v_what   text;
  v_grants int := 0;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    PERFORM pawl.require_read_committed();
  END IF;
  PERFORM pg_advisory_xact_lock(c_key), pg_advisory_xact_lock_shared(pawl.session_key(p_session));
  IF p_op = 'acquire' THEN
    INSERT INTO pawl.lock_state (key, id, ns, name, at, what, token, served, mode, holders, granted_to)
      SELECT c_key, nextval('pawl.lock_id'), p_ns, p_name, n.at, 'granted', n.token, n.served, p_mode,
        ARRAY[ROW(p_session, n.token, p_owner, n.at, n.at + p_hold_ms * interval '1 ms', p_delay_ms, NULL)::pawl.lock_holder], p_session
      FROM (
        SELECT f.served, greatest(f.token + 1, (pawl.timeline() << 40) + nextval('pawl.lock_token')) AS token, clock_timestamp() AS at  -- lock_token_next, in place
        FROM pawl.lock_free(p_ns, p_session, p_name) f OFFSET 0) n
      RETURNING 'granted', token, CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'local', true) END  -- lock_durable, in place
        INTO status, number, info;
  ELSIF p_op = 'release' THEN
    INSERT INTO pawl.lock_state (key, id, ns, name, at, what, token, served, mode, holders)
      SELECT c_key, nextval('pawl.lock_id'), p_ns, p_name, clock_timestamp(), 'released', p_number, f.served, f.mode, '{}'
      FROM pawl.lock_sole(p_ns, p_session, p_name, p_number) f WHERE pg_try_advisory_xact_lock(pawl.lock_grant_key(p_ns, p_name, p_number))
      RETURNING 'released', set_config('synchronous_commit', 'off', true) INTO status, info;
  END IF;
  info := NULL;
  IF status IS NOT NULL THEN
    RETURN;
  END IF;

  IF NOT EXISTS (SELECT FROM pawl.session z WHERE z.ns = p_ns AND z.id = p_session AND z.ended_at IS NULL) THEN
    RAISE EXCEPTION 'pawl: session % has ended', p_session USING ERRCODE = 'PW004';
  END IF;
  SELECT x.* INTO s FROM pawl.lock_now(p_ns, p_name) x;
  IF s.key IS NULL THEN
    s := ROW(c_key, 0, p_ns, p_name, NULL, NULL, 0, 0, p_mode, '{}', NULL, NULL, NULL)::pawl.lock_state;
  ELSIF s.name <> p_name OR s.ns <> p_ns THEN
    RAISE EXCEPTION 'pawl: lock names % and % have the same hash', s.name, p_name USING ERRCODE = '22023', HINT = 'Rename one of them.';
  ELSIF p_op <> 'release' THEN
    s := pawl.lock_reap(s);
    v_what := coalesce(s.what, CASE WHEN s.free_at <= clock_timestamp() THEN 'passed' END);
    IF v_what IS NOT NULL OR p_op = 'poll' THEN  -- who waits first may be gone
      v_grants := pawl.lock_serve(s, v_what);
      SELECT x.* INTO s FROM pawl.lock_now(p_ns, p_name) x;
    END IF;
  END IF;

  IF p_op = 'acquire' THEN
    IF s.free_at IS NULL AND pawl.lock_fits(s, p_mode, p_permits, p_owner)
        AND (NOT EXISTS (SELECT FROM pawl.lock_waiter w WHERE w.key = c_key AND w.id > s.served)
          OR (SELECT bool_or(x.owner = p_owner) FROM unnest(s.holders) x)) THEN
      s.token := pawl.lock_token_next(s.token);
      s.mode := pawl.lock_joined(s, p_mode);
      s.holders := s.holders || ROW(p_session, s.token, p_owner, clock_timestamp(), clock_timestamp() + p_hold_ms * interval '1 ms', p_delay_ms, NULL)::pawl.lock_holder;
      PERFORM pawl.lock_append(s, 'granted', p_session, NULL);
      v_grants := v_grants + 1;
      status := 'granted';
      number := s.token;
    ELSIF NOT p_waits THEN
      status := 'held';
      info := pawl.lock_who(s);
    ELSE
      number := nextval('pawl.lock_id');
      IF p_holds THEN
        PERFORM pg_advisory_xact_lock(pawl.lock_key(p_ns, ''));  -- one at a time: two that wait for each other must not miss each other
        info := pawl.lock_ring(p_ns, p_owner, p_name, number);
      END IF;
      IF info IS NOT NULL THEN
        status := 'deadlock';
        number := NULL;
      ELSE
        INSERT INTO pawl.lock_waiter (key, id, ns, name, session_id, owner, mode, permits, hold_ms, delay_ms, at)
          VALUES (c_key, number, p_ns, p_name, p_session, p_owner, p_mode, p_permits, p_hold_ms, p_delay_ms, clock_timestamp());
        status := 'waiting';
      END IF;
    END IF;

  ELSIF p_op = 'release' THEN
    status := 'gone';
    FOREACH h IN ARRAY s.holders LOOP
      IF h.session_id = p_session AND h.token = p_number THEN
        IF pg_try_advisory_xact_lock(pawl.lock_grant_key(p_ns, p_name, h.token)) THEN
          s.holders := array_remove(s.holders, h);
          v_grants := pawl.lock_serve(s, 'released');
          status := 'released';
        ELSE
          status := 'asserted';
        END IF;
      END IF;
    END LOOP;

  ELSE  -- poll, cancel
    status := CASE WHEN s.served >= p_number THEN 'gone' ELSE 'waiting' END;
    FOREACH h IN ARRAY s.holders LOOP
      IF h.waiter = p_number AND h.session_id = p_session THEN
        status := 'granted';
        number := h.token;
        info := extract(epoch FROM h.until - clock_timestamp()) * 1000;
      END IF;
    END LOOP;
    IF status = 'waiting' AND p_op = 'cancel' THEN
      DELETE FROM pawl.lock_waiter w WHERE w.key = c_key AND w.id = p_number AND w.session_id = p_session;
      v_grants := v_grants + pawl.lock_serve(s, NULL);  -- others may have waited behind it alone
      status := 'cancelled';
    ELSIF status = 'waiting' AND NOT EXISTS (SELECT FROM pawl.lock_waiter w WHERE w.key = c_key AND w.id = p_number) THEN
      status := 'gone';
    END IF;
  END IF;
  IF v_grants = 0 THEN
    PERFORM set_config('synchronous_commit', 'off', true);
  ELSE
    PERFORM pawl.lock_durable();
  END IF;
END $$;
-- +goose StatementEnd

-- lock_ask for several requests, each of another name, that commit together. The arrays are parallel. Free locks, and releases that nobody waits for, take one
-- statement together: 20 µs each, where one by one they take 50.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_batch(p_ns smallint, p_session bigint, p_ops text[], p_names text[], p_owners text[], p_modes pawl.lock_mode[], p_permits int[],
  p_waits boolean[], p_holds boolean[], p_hold_ms int[], p_delay_ms int[], p_numbers bigint[],
  OUT statuses text[], OUT numbers bigint[], OUT infos text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET lock_timeout = '5s' AS $$
DECLARE
  c_sync CONSTANT text := coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'local');  -- of grants, see lock_durable
  r          record;
  v_names    text[];    -- granted together
  v_tokens   bigint[];  -- of these
  v_returned text[];    -- released together
  v_at       int;
  v_sync     boolean := false;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    PERFORM pawl.require_read_committed();
  END IF;
  PERFORM pg_advisory_xact_lock(o.k) FROM (SELECT DISTINCT pawl.lock_key(p_ns, n) AS k FROM unnest(p_names) n ORDER BY k) o;
  PERFORM pg_advisory_xact_lock_shared(pawl.session_key(p_session));
  IF 'acquire' = ANY (p_ops) THEN
    WITH n AS (
      INSERT INTO pawl.lock_state (key, id, ns, name, at, what, token, served, mode, holders, granted_to)
        SELECT pawl.lock_key(p_ns, p_names[g.i]), nextval('pawl.lock_id'), p_ns, p_names[g.i], g.at, 'granted', g.token, g.served, p_modes[g.i],
          ARRAY[ROW(p_session, g.token, p_owners[g.i], g.at, g.at + p_hold_ms[g.i] * interval '1 ms', p_delay_ms[g.i], NULL)::pawl.lock_holder], p_session
        FROM (
          SELECT i, f.served, greatest(f.token + 1, (pawl.timeline() << 40) + nextval('pawl.lock_token')) AS token, clock_timestamp() AS at
          FROM generate_subscripts(p_names, 1) i CROSS JOIN LATERAL pawl.lock_free(p_ns, p_session, p_names[i]) f
          WHERE p_ops[i] = 'acquire' OFFSET 0) g
        RETURNING name, token)
    SELECT array_agg(n.name), array_agg(n.token) INTO v_names, v_tokens FROM n;
    v_sync := v_names IS NOT NULL;
  END IF;
  IF 'release' = ANY (p_ops) THEN
    WITH n AS (
      INSERT INTO pawl.lock_state (key, id, ns, name, at, what, token, served, mode, holders)
        SELECT pawl.lock_key(p_ns, p_names[i]), nextval('pawl.lock_id'), p_ns, p_names[i], clock_timestamp(), 'released', p_numbers[i], f.served, f.mode, '{}'
        FROM generate_subscripts(p_names, 1) i CROSS JOIN LATERAL pawl.lock_sole(p_ns, p_session, p_names[i], p_numbers[i]) f
        WHERE p_ops[i] = 'release' AND pg_try_advisory_xact_lock(pawl.lock_grant_key(p_ns, p_names[i], p_numbers[i]))
        RETURNING name)
    SELECT array_agg(n.name) INTO v_returned FROM n;
  END IF;
  FOR i IN 1 .. cardinality(p_names) LOOP
    v_at := array_position(v_names, p_names[i]);
    IF v_at IS NOT NULL THEN
      statuses[i] := 'granted';
      numbers[i] := v_tokens[v_at];
    ELSIF p_names[i] = ANY (v_returned) THEN
      statuses[i] := 'released';
      numbers[i] := NULL;
    ELSE
      PERFORM set_config('synchronous_commit', c_sync, true);
      SELECT * INTO r FROM pawl.lock_ask(p_ns, p_session, p_ops[i], p_names[i], p_owners[i], p_modes[i], p_permits[i], p_waits[i], p_holds[i], p_hold_ms[i],
        p_delay_ms[i], p_numbers[i]);
      statuses[i] := r.status;
      numbers[i] := r.number;
      infos[i] := r.info;
      v_sync := v_sync OR current_setting('synchronous_commit') <> 'off';
    END IF;
  END LOOP;
  PERFORM set_config('synchronous_commit', CASE WHEN v_sync THEN c_sync ELSE 'off' END, true);
END $$;
-- +goose StatementEnd

-- Who holds a lock, as text for people.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_who(s pawl.lock_state) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
  RETURN coalesce((SELECT string_agg(format('%s on %s, pid %s (session %s), since %s', coalesce(z.name, 'an unknown session'), z.host, z.pid, h.session_id,
      to_char(h.since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"')), '; ')
    FROM (SELECT u.* FROM unnest(s.holders) u ORDER BY u.token LIMIT 3) h LEFT JOIN LATERAL (SELECT y.* FROM pawl.session y WHERE y.ns = s.ns AND y.id = h.session_id OFFSET 0) z ON true),
    'nobody until ' || to_char(s.free_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS"Z"'), 'those who wait');
END $$;
-- +goose StatementEnd

-- The holders of a lock whose session is alive.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_alive(p_ns smallint, p_name text) RETURNS TABLE (token bigint, session_id bigint, process text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off AS $$
BEGIN
  RETURN QUERY
    SELECT h.token, h.session_id, format('%s on %s, pid %s', z.name, z.host, z.pid)
    FROM pawl.lock_now(p_ns, p_name) s CROSS JOIN LATERAL unnest(s.holders) h
    CROSS JOIN LATERAL (SELECT y.* FROM pawl.session y WHERE y.ns = p_ns AND y.id = h.session_id AND y.ended_at IS NULL OFFSET 0) z;  -- one by one, not all sessions once
END $$;
-- +goose StatementEnd

-- Proves in the caller's transaction that the session holds the lock under this token, and keeps it so until that transaction ends: whoever takes it away
-- waits for that. Raises PW001 if it does not.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_assert(p_ns smallint, p_session bigint, p_name text, p_token bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET lock_timeout = '10s' AS $$
BEGIN
  PERFORM pawl.require_read_committed();
  PERFORM pg_advisory_xact_lock_shared(pawl.lock_grant_key(p_ns, p_name, p_token));
  -- A new statement: it sees whatever was committed by one who took the lock away.
  IF NOT EXISTS (
      SELECT FROM pawl.lock_now(p_ns, p_name) s CROSS JOIN LATERAL unnest(s.holders) h
      JOIN pawl.session z ON z.ns = p_ns AND z.id = h.session_id AND z.ended_at IS NULL
      WHERE h.token = p_token AND h.session_id = p_session AND (h.until IS NULL OR h.until > clock_timestamp())) THEN
    RAISE EXCEPTION 'pawl: lock % was lost: token % does not hold it any more', p_name, p_token USING ERRCODE = 'PW001';
  END IF;
END $$;
-- +goose StatementEnd

-- Refuses a token older than the newest that has been seen for a resource (PW001), in the caller's transaction: the fence for what is written elsewhere.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_guard_check(p_ns smallint, p_resource text, p_token bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '10s' AS $$
BEGIN
  INSERT INTO pawl.lock_guard AS g (ns, resource, token) VALUES (p_ns, p_resource, p_token)
    ON CONFLICT (ns, resource) DO UPDATE SET token = excluded.token WHERE g.token <= excluded.token;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'pawl: resource % has seen a newer token than %', p_resource, p_token USING ERRCODE = 'PW001';
  END IF;
END $$;
-- +goose StatementEnd

-- Gives up what a session has that its process does not know of (p_tokens and p_waiters: what it knows): replies that were lost, and releases that a crash of
-- the server undid, since they commit asynchronously. Also, with both empty, all that an ended session had. Looks at up to p_limit of its locks behind
-- p_after, in the order of their keys; last NULL: that was all. What an open transaction asserts stays.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_resync(p_ns smallint, p_session bigint, p_tokens bigint[], p_waiters bigint[], p_after bigint, p_limit int, OUT last bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET lock_timeout = '5s' AS $$
DECLARE
  s        pawl.lock_state;
  h        pawl.lock_holder;
  v_name   text;
  v_what   text;
  v_n      int := 0;
  v_any    boolean;
  v_waited boolean;
BEGIN
  PERFORM pawl.require_read_committed();
  -- IS TRUE: found by the session alone, since Postgres may else read all states and waits with a key above p_after.
  FOR v_name, last IN
      SELECT n.name, n.key FROM (
        SELECT x.name, x.key FROM pawl.lock_state x CROSS JOIN LATERAL (SELECT y.holders FROM pawl.lock_now(p_ns, x.name) y) y
          WHERE x.granted_to = p_session AND x.ns = p_ns AND (x.key > p_after) IS TRUE
            AND EXISTS (SELECT FROM unnest(y.holders) u WHERE u.session_id = p_session AND u.token <> ALL (p_tokens) AND coalesce(u.waiter, 0) <> ALL (p_waiters))
        UNION
        SELECT w.name, w.key FROM pawl.lock_waiter w
          WHERE w.session_id = p_session AND w.ns = p_ns AND (w.key > p_after) IS TRUE AND w.id <> ALL (p_waiters)
            AND w.id > coalesce((SELECT y.served FROM pawl.lock_now(p_ns, w.name) y), 0)) n
      ORDER BY n.key LIMIT p_limit LOOP
    v_n := v_n + 1;
    PERFORM pg_advisory_xact_lock(last);
    SELECT x.* INTO s FROM pawl.lock_now(p_ns, v_name) x;  -- a wait may just have been granted
    DELETE FROM pawl.lock_waiter w WHERE w.key = last AND w.id > s.served AND w.session_id = p_session AND w.id <> ALL (p_waiters);
    v_waited := FOUND;
    v_any := false;
    s := pawl.lock_reap(s);
    v_what := s.what;
    FOREACH h IN ARRAY s.holders LOOP
      IF h.session_id = p_session AND h.token <> ALL (p_tokens) AND coalesce(h.waiter, 0) <> ALL (p_waiters)
          AND EXISTS (SELECT FROM pawl.session z WHERE z.ns = p_ns AND z.id = p_session AND z.ended_at IS NULL)
          AND pg_try_advisory_xact_lock(pawl.lock_grant_key(p_ns, v_name, h.token)) THEN
        s.holders := array_remove(s.holders, h);
        v_any := true;
      END IF;
    END LOOP;
    IF v_any OR v_what IS NOT NULL THEN
      PERFORM pawl.lock_serve(s, coalesce(v_what, 'released'));
    ELSIF v_waited THEN
      PERFORM pawl.lock_serve(s, NULL);  -- others may have waited behind it alone
    END IF;
  END LOOP;
  IF v_n < p_limit THEN
    last := NULL;
  END IF;
END $$;
-- +goose StatementEnd

-- Takes a lock away from all its holders, for a reason that is kept in its history, and grants it to the next. The holders' processes are hinted. Gives how many
-- held it. Raises 55P03 while an open transaction asserts it.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_force(p_ns smallint, p_name text, p_reason text) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET lock_timeout = '10s' AS $$
DECLARE
  s   pawl.lock_state;
  h   pawl.lock_holder;
  v_n int;
BEGIN
  PERFORM pawl.require_read_committed();
  PERFORM pg_advisory_xact_lock(pawl.lock_key(p_ns, p_name));
  SELECT x.* INTO s FROM pawl.lock_now(p_ns, p_name) x;
  IF NOT FOUND THEN
    RETURN 0;
  END IF;
  v_n := cardinality(s.holders);
  FOREACH h IN ARRAY s.holders LOOP
    IF NOT pg_try_advisory_xact_lock(pawl.lock_grant_key(p_ns, p_name, h.token)) THEN
      RAISE EXCEPTION 'pawl: an open transaction asserts lock % (token %)', p_name, h.token USING ERRCODE = '55P03', HINT = 'Try again when it has ended.';
    END IF;
    PERFORM pg_notify(format('pawl_%s_s%s', p_ns, h.session_id), 'f' || h.token);
  END LOOP;
  s.holders := '{}';
  s.free_at := NULL;
  s.token := pawl.lock_token_next(s.token);
  PERFORM pawl.lock_serve(s, 'forced', p_reason);
  RETURN v_n;
END $$;
-- +goose StatementEnd

-- Raises the sequence of tokens above all that were drawn where the rows come from: there may have been more than they tell, and the timelines of this cluster
-- may be lower by up to 1,000.
-- +goose StatementBegin
CREATE FUNCTION pawl.lock_rebase() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM setval('pawl.lock_token', greatest(t.last_value, (SELECT max(s.token) FROM pawl.lock_state s)) + (1::bigint << 50)) FROM pawl.lock_token t;
END $$;
-- +goose StatementEnd

-- The sweep "locks": removes states that a newer one of the same name has replaced, the last one too when the lock has been free for p_keep (nobody waits then),
-- and waits that are over. Looks at up to p_limit locks behind p_after, in the order of their keys; last NULL: the round is done; removed
-- NULL: another node is at it.
-- +goose StatementBegin
CREATE FUNCTION pawl.sweep_locks(p_ns smallint, p_after bigint, p_limit int, p_keep interval, OUT removed bigint, OUT last bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET lock_timeout = '2s' AS $$
DECLARE
  s   pawl.lock_state;
  w   record;
  v_n bigint;
BEGIN
  PERFORM pawl.require_read_committed();
  IF NOT pg_try_advisory_xact_lock(pawl.sweep_key(p_ns, 'locks')) THEN
    RETURN;
  END IF;
  removed := 0;
  FOR i IN 1 .. p_limit LOOP
    SELECT x.key, x.ns, x.name INTO w FROM pawl.lock_state x WHERE x.key > p_after ORDER BY x.key, x.id LIMIT 1;
    last := w.key;
    EXIT WHEN last IS NULL;
    p_after := last;
    CONTINUE WHEN w.ns <> p_ns OR NOT pg_try_advisory_xact_lock(last);  -- busy; the next round finds it
    SELECT x.* INTO s FROM pawl.lock_now(w.ns, w.name) x;
    CONTINUE WHEN NOT FOUND;
    s := pawl.lock_reap(s);
    IF s.what IS NOT NULL OR s.free_at <= clock_timestamp() THEN
      PERFORM pawl.lock_serve(s, coalesce(s.what, 'passed'));
      SELECT x.* INTO s FROM pawl.lock_now(w.ns, w.name) x;
    END IF;
    DELETE FROM pawl.lock_waiter x WHERE x.key = last AND x.id <= s.served;
    GET DIAGNOSTICS v_n = ROW_COUNT;
    removed := removed + v_n;
    -- A grant that still holds stays, since lock_resync finds it by granted_to.
    DELETE FROM pawl.lock_state x WHERE x.key = last AND (x.id < s.id AND NOT EXISTS (SELECT FROM unnest(s.holders) h WHERE h.token = x.token AND x.granted_to IS NOT NULL) OR
      cardinality(s.holders) = 0 AND s.free_at IS NULL AND s.at < clock_timestamp() - p_keep);
    GET DIAGNOSTICS v_n = ROW_COUNT;
    removed := removed + v_n;
  END LOOP;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pawl.sweep_locks, pawl.lock_rebase, pawl.lock_force, pawl.lock_resync, pawl.lock_guard_check, pawl.lock_assert, pawl.lock_alive, pawl.lock_who, pawl.lock_batch, pawl.lock_ask, pawl.lock_sole, pawl.lock_free,
  pawl.lock_ring, pawl.lock_reap, pawl.lock_serve, pawl.lock_append, pawl.lock_durable, pawl.lock_joined, pawl.lock_fits, pawl.lock_token_next, pawl.timeline, pawl.lock_now, pawl.lock_grant_key, pawl.lock_key;
DROP TABLE pawl.lock_guard, pawl.lock_waiter, pawl.lock_state;
DROP SEQUENCE pawl.lock_token, pawl.lock_id;
DROP TYPE pawl.lock_holder, pawl.lock_mode;
