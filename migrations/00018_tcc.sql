-- +goose Up

-- Global transactions over services: try, then confirm or cancel. A row each, appended and never changed; what becomes of them is in the tables below, appended too.
CREATE TABLE pawl.tcc (
  ns          smallint    NOT NULL,
  id          text        NOT NULL,
  begun_at    timestamptz NOT NULL,
  deadline_at timestamptz NOT NULL,  -- from then on it cannot be confirmed, and is cancelled
  begun_by    text        NOT NULL,
  headers     json,
  PRIMARY KEY (ns, id),
  CONSTRAINT tcc_length CHECK (char_length(id) BETWEEN 1 AND 256)
);
CREATE INDEX tcc_deadline ON pawl.tcc ((-ns), deadline_at, id);

-- Branches, each registered before it was tried, numbered from 1 within its transaction. What to do of it after the decision, and how.
CREATE TABLE pawl.tcc_branch (
  ns             smallint    NOT NULL,
  id             text        NOT NULL,
  n              int         NOT NULL,
  at             timestamptz NOT NULL,
  kind           text        NOT NULL,
  queue          text        NOT NULL,
  priority       smallint    NOT NULL,
  max_attempts   smallint    NOT NULL,
  timeout_ms     int,
  backoff_ms     int,
  backoff_ms_max int,
  args           json        NOT NULL,
  PRIMARY KEY (ns, id, n),
  CONSTRAINT tcc_branch_kind CHECK (kind ~ '^[A-Za-z0-9._-]{1,64}$')
);

-- Decisions: who inserts first decides.
CREATE TABLE pawl.tcc_decision (
  ns         smallint    NOT NULL,
  id         text        NOT NULL,
  decided_at timestamptz NOT NULL,
  confirmed  boolean     NOT NULL,
  decided_by text        NOT NULL,
  reason     text,                  -- of a cancellation
  PRIMARY KEY (ns, id)
);
CREATE INDEX tcc_decision_at ON pawl.tcc_decision ((-ns), decided_at, id);

-- The jobs that confirm or cancel branches: one each with the decision, and those that an operator had follow.
CREATE TABLE pawl.tcc_job (
  ns     smallint    NOT NULL,
  id     text        NOT NULL,
  n      int         NOT NULL,
  job_id bigint      NOT NULL,
  at     timestamptz NOT NULL,
  actor  text,                  -- an operator's,
  reason text,                  -- and why
  PRIMARY KEY (ns, id, n, job_id)
);

-- Branches that are confirmed or cancelled.
CREATE TABLE pawl.tcc_end (
  ns smallint    NOT NULL,
  id text        NOT NULL,
  n  int         NOT NULL,
  at timestamptz NOT NULL,
  PRIMARY KEY (ns, id, n)
);

-- Branches that were found stuck: their job ended, and they have not. What an operator was told of.
CREATE TABLE pawl.tcc_stuck (
  ns     smallint    NOT NULL,
  id     text        NOT NULL,
  n      int         NOT NULL,
  job_id bigint      NOT NULL,
  at     timestamptz NOT NULL,
  PRIMARY KEY (ns, id, n, job_id)
);

-- Up to which deadline the sweep has cancelled what was not decided.
CREATE TABLE pawl.tcc_floor (
  ns smallint    PRIMARY KEY REFERENCES pawl.namespace,
  at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- What registering a branch and deciding hold, until the end of their transactions.
CREATE FUNCTION pawl.tcc_lock_key(p_ns smallint, p_id text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashtextextended($2, (7018::bigint << 16) + $1)';

-- What the decision must outlive, and what must be known of a branch that is tried: commits of these are never asynchronous.
-- +goose StatementBegin
CREATE FUNCTION pawl.tcc_durable() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF current_setting('synchronous_commit') = 'off' THEN
    PERFORM set_config('synchronous_commit', 'local', true);
  END IF;
END $$;
-- +goose StatementEnd

-- Begins a transaction. Raises PW040 if there is one of this id.
-- +goose StatementBegin
CREATE FUNCTION pawl.tcc_begin(p_ns smallint, p_id text, p_timeout_ms bigint, p_headers json) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM pawl.namespace n WHERE n.ns = p_ns) THEN
    RAISE EXCEPTION 'pawl: namespace % does not exist', p_ns USING ERRCODE = '22023', HINT = 'SELECT pawl.namespace_create(name) makes one.';
  END IF;
  INSERT INTO pawl.tcc (ns, id, begun_at, deadline_at, begun_by, headers)
    VALUES (p_ns, p_id, clock_timestamp(), clock_timestamp() + p_timeout_ms * interval '1 ms', coalesce(nullif(current_setting('application_name'), ''), session_user), p_headers)
    ON CONFLICT DO NOTHING;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'pawl: there is a transaction % already', p_id USING ERRCODE = 'PW040';
  END IF;
END $$;
-- +goose StatementEnd

-- Takes a transaction's lock, to look at it in later statements. Raises PW041 if there is none.
-- +goose StatementBegin
CREATE FUNCTION pawl.tcc_lock(p_ns smallint, p_id text) RETURNS pawl.tcc
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET lock_timeout = '5s' AS $$
DECLARE
  t pawl.tcc;
BEGIN
  PERFORM pawl.require_read_committed();
  PERFORM pg_advisory_xact_lock(pawl.tcc_lock_key(p_ns, p_id));
  SELECT x.* INTO t FROM pawl.tcc x WHERE x.ns = p_ns AND x.id = p_id;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'pawl: there is no transaction %', p_id USING ERRCODE = 'PW041';
  END IF;
  RETURN t;
END $$;
-- +goose StatementEnd

-- Raises PW042 if a transaction is cancelled, PW043 if it is confirmed, unless it is as wanted. Tells whether it is decided. Its lock is held.
-- +goose StatementBegin
CREATE FUNCTION pawl.tcc_decided(p_ns smallint, p_id text, p_wanted boolean) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  d pawl.tcc_decision;
BEGIN
  SELECT x.* INTO d FROM pawl.tcc_decision x WHERE x.ns = p_ns AND x.id = p_id;
  IF NOT FOUND OR d.confirmed = p_wanted THEN
    RETURN d.id IS NOT NULL;
  END IF;
  IF d.confirmed THEN
    RAISE EXCEPTION 'pawl: transaction % was confirmed', p_id USING ERRCODE = 'PW043';
  END IF;
  RAISE EXCEPTION 'pawl: transaction % was cancelled: %', p_id, d.reason USING ERRCODE = 'PW042';
END $$;
-- +goose StatementEnd

-- The args of the jobs of a branch.
-- +goose StatementBegin
CREATE FUNCTION pawl.tcc_args(b pawl.tcc_branch) RETURNS json LANGUAGE sql STABLE BEGIN ATOMIC
  SELECT json_build_object('ns', b.ns, 'transaction', b.id, 'n', b.n, 'args', b.args);
END;
-- +goose StatementEnd

-- Registers a branch, before it is tried: while the transaction is not decided and its deadline has not passed. n: its number; left_ms: until the deadline. Raises PW041 to PW044, PW046 if there are p_max already, and what enqueueing its
-- jobs would raise.
-- +goose StatementBegin
CREATE FUNCTION pawl.tcc_register(p_ns smallint, p_id text, p_kind text, p_queue text, p_priority smallint, p_max_attempts smallint, p_timeout_ms int, p_backoff_ms int, p_backoff_ms_max int,
  p_args json, p_max int, OUT n int, OUT left_ms float8)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  t       pawl.tcc := pawl.tcc_lock(p_ns, p_id);
  b       pawl.tcc_branch;
  l       record;
  v_bytes int;
BEGIN
  PERFORM pawl.tcc_durable();
  PERFORM pawl.tcc_decided(p_ns, p_id, NULL);
  left_ms := extract(epoch FROM t.deadline_at - clock_timestamp()) * 1000;
  IF left_ms <= 0 THEN
    RAISE EXCEPTION 'pawl: the deadline of transaction % has passed', p_id USING ERRCODE = 'PW044';
  END IF;
  SELECT coalesce(max(x.n), 0) + 1 INTO n FROM pawl.tcc_branch x WHERE x.ns = p_ns AND x.id = p_id;
  IF n > p_max THEN
    RAISE EXCEPTION 'pawl: transaction % has % branches, which are the most', p_id, p_max USING ERRCODE = 'PW046';
  END IF;
  b := ROW(p_ns, p_id, n, clock_timestamp(), p_kind, p_queue, p_priority, p_max_attempts, p_timeout_ms, p_backoff_ms, p_backoff_ms_max, p_args);
  v_bytes := octet_length(pawl.tcc_args(b)::text);
  IF NOT pawl.is_job(p_kind, v_bytes, p_max_attempts, p_timeout_ms, p_backoff_ms, p_backoff_ms_max) THEN
    PERFORM pawl.raise_arguments(p_kind, v_bytes, p_max_attempts, p_timeout_ms, p_backoff_ms, p_backoff_ms_max);
  END IF;
  SELECT x.* INTO l FROM pawl.line_of(p_ns, p_queue, p_priority) x;
  IF NOT FOUND THEN
    PERFORM pawl.line_create(p_ns, p_queue, p_priority);
    SELECT x.* INTO l FROM pawl.line_of(p_ns, p_queue, p_priority) x;
  END IF;
  IF NOT pawl.is_home(l.cluster) THEN
    PERFORM pawl.raise_moved(p_queue);
  END IF;
  IF v_bytes > l.payload_bytes_max THEN
    PERFORM pawl.raise_payload(v_bytes, l.payload_bytes_max, p_queue);
  END IF;
  INSERT INTO pawl.tcc_branch SELECT b.*;
END $$;
-- +goose StatementEnd

-- Enqueues the job that confirms or cancels a branch.
-- +goose StatementBegin
CREATE FUNCTION pawl.tcc_enqueue(b pawl.tcc_branch, p_confirm boolean, p_headers json, p_actor text, p_reason text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO pawl.tcc_job (ns, id, n, job_id, at, actor, reason)
    VALUES (b.ns, b.id, b.n, pawl.enqueue(b.ns, b.queue, 'tcc:' || b.kind || CASE WHEN p_confirm THEN '/confirm' ELSE '/cancel' END, pawl.tcc_args(b), b.priority, NULL, b.max_attempts, b.timeout_ms,
      b.backoff_ms, b.backoff_ms_max, p_headers), clock_timestamp(), p_actor, p_reason);
END $$;
-- +goose StatementEnd

-- Decides a transaction whose lock is held and that is not decided, and enqueues the jobs of its branches. queues: that got work.
-- +goose StatementBegin
CREATE FUNCTION pawl.tcc_settle(t pawl.tcc, p_confirm boolean, p_by text, p_reason text, OUT queues text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  b pawl.tcc_branch;
BEGIN
  PERFORM pawl.tcc_durable();
  queues := '{}';
  INSERT INTO pawl.tcc_decision (ns, id, decided_at, confirmed, decided_by, reason) VALUES (t.ns, t.id, clock_timestamp(), p_confirm, p_by, p_reason);
  FOR b IN SELECT x.* FROM pawl.tcc_branch x WHERE x.ns = t.ns AND x.id = t.id ORDER BY x.n LOOP
    PERFORM pawl.tcc_enqueue(b, p_confirm, t.headers, NULL, NULL);
    IF b.queue <> ALL (queues) THEN
      queues := queues || b.queue;
    END IF;
  END LOOP;
END $$;
-- +goose StatementEnd

-- Decides a transaction, unless that was done before. To be confirmed, its branches must be those of p_tried, and its deadline ahead. Raises PW041 to PW044, and PW045 if another branch is registered.
-- +goose StatementBegin
CREATE FUNCTION pawl.tcc_decide(p_ns smallint, p_id text, p_confirm boolean, p_tried int[], p_by text, p_reason text, OUT queues text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  t         pawl.tcc := pawl.tcc_lock(p_ns, p_id);
  v_untried text;
BEGIN
  queues := '{}';
  IF pawl.tcc_decided(p_ns, p_id, p_confirm) THEN
    RETURN;
  END IF;
  IF p_confirm THEN
    IF t.deadline_at <= clock_timestamp() THEN
      RAISE EXCEPTION 'pawl: the deadline of transaction % has passed', p_id USING ERRCODE = 'PW044';
    END IF;
    SELECT string_agg(b.kind || '.' || b.n, ', ' ORDER BY b.n) INTO v_untried FROM pawl.tcc_branch b WHERE b.ns = p_ns AND b.id = p_id AND b.n <> ALL (p_tried);
    IF v_untried IS NOT NULL THEN
      RAISE EXCEPTION 'pawl: of transaction %, these have not been tried with success: %', p_id, v_untried USING ERRCODE = 'PW045';
    END IF;
  END IF;
  SELECT s.queues INTO queues FROM pawl.tcc_settle(t, p_confirm, p_by, p_reason) s;
END $$;
-- +goose StatementEnd

-- Notes that a branch is confirmed or cancelled.
-- +goose StatementBegin
CREATE FUNCTION pawl.tcc_done(p_ns smallint, p_id text, p_n int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  INSERT INTO pawl.tcc_end (ns, id, n, at) VALUES (p_ns, p_id, p_n, clock_timestamp()) ON CONFLICT DO NOTHING;
END $$;
-- +goose StatementEnd

-- Whether a job that a branch waits for has ended, or is not there any more.
-- +goose StatementBegin
CREATE FUNCTION pawl.tcc_job_over(p_ns smallint, p_job bigint) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN coalesce((SELECT s.state IS NULL OR s.state IN ('succeeded', 'discarded', 'cancelled') FROM pawl.job_state(p_ns, p_job) s), true);
END $$;
-- +goose StatementEnd

-- The branches of a transaction as they stand, by number. A branch is stuck if its newest job is over, and it is not done.
-- +goose StatementBegin
CREATE FUNCTION pawl.tcc_branches(p_ns smallint, p_id text, OUT n int, OUT kind text, OUT queue text, OUT at timestamptz, OUT args json, OUT job_id bigint, OUT ended_at timestamptz, OUT stuck boolean) RETURNS SETOF record
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
  RETURN QUERY SELECT b.n, b.kind, b.queue, b.at, b.args, j.job_id, e.at, CASE WHEN e.at IS NULL AND j.job_id IS NOT NULL THEN pawl.tcc_job_over(p_ns, j.job_id) ELSE false END
    FROM pawl.tcc_branch b
    LEFT JOIN LATERAL (SELECT x.job_id FROM pawl.tcc_job x WHERE x.ns = p_ns AND x.id = p_id AND x.n = b.n ORDER BY x.job_id DESC LIMIT 1) j ON true
    LEFT JOIN LATERAL (SELECT x.at FROM pawl.tcc_end x WHERE x.ns = p_ns AND x.id = p_id AND x.n = b.n OFFSET 0) e ON true
    WHERE b.ns = p_ns AND b.id = p_id ORDER BY b.n;
END $$;
-- +goose StatementEnd

-- How a transaction stands. confirmed NULL: it is not decided. begun_at NULL: there is none.
-- +goose StatementBegin
CREATE FUNCTION pawl.tcc_look(p_ns smallint, p_id text, OUT begun_at timestamptz, OUT deadline_at timestamptz, OUT begun_by text, OUT confirmed boolean, OUT decided_at timestamptz, OUT decided_by text, OUT reason text,
  OUT branches int, OUT ended int)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
  SELECT t.begun_at, t.deadline_at, t.begun_by, d.confirmed, d.decided_at, d.decided_by, d.reason,
      (SELECT count(*) FROM pawl.tcc_branch b WHERE b.ns = p_ns AND b.id = p_id), (SELECT count(*) FROM pawl.tcc_end e WHERE e.ns = p_ns AND e.id = p_id)
    INTO begun_at, deadline_at, begun_by, confirmed, decided_at, decided_by, reason, branches, ended
    FROM pawl.tcc t LEFT JOIN pawl.tcc_decision d ON d.ns = p_ns AND d.id = p_id
    WHERE t.ns = p_ns AND t.id = p_id;
END $$;
-- +goose StatementEnd

-- Has the branches that are stuck tried again, with all their attempts. Raises PW041, and PW047 if none is stuck.
-- +goose StatementBegin
CREATE FUNCTION pawl.tcc_retry(p_ns smallint, p_id text, p_actor text, p_reason text, OUT queues text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  t           pawl.tcc := pawl.tcc_lock(p_ns, p_id);
  b           pawl.tcc_branch;
  v_confirmed boolean;
BEGIN
  queues := '{}';
  SELECT d.confirmed INTO v_confirmed FROM pawl.tcc_decision d WHERE d.ns = p_ns AND d.id = p_id;
  FOR b IN SELECT x.* FROM pawl.tcc_branch x JOIN pawl.tcc_branches(p_ns, p_id) s ON s.n = x.n AND s.stuck WHERE x.ns = p_ns AND x.id = p_id ORDER BY x.n LOOP
    PERFORM pawl.tcc_enqueue(b, v_confirmed, t.headers, p_actor, p_reason);
    queues := queues || b.queue;
  END LOOP;
  IF queues = '{}' THEN
    RAISE EXCEPTION 'pawl: no branch of transaction % is stuck', p_id USING ERRCODE = 'PW047';
  END IF;
END $$;
-- +goose StatementEnd

-- The sweep "tcc": of the p_limit transactions behind (p_after, p_after_id) that nobody has decided by their deadline, cancels all but those that somebody is deciding right now. failed: those that could not be, and why. queues: that got
-- work. did NULL: another node is at it. last NULL: the round is over. p_after_id '' begins one: 5 minutes behind what was seen, for what was committed late.
-- +goose StatementBegin
CREATE FUNCTION pawl.sweep_tcc(p_ns smallint, p_after timestamptz, p_after_id text, p_limit int, OUT did int, OUT queues text[], OUT failed text[], OUT last timestamptz, OUT last_id text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_custom_plan SET lock_timeout = '5s' AS $$
DECLARE
  v_floor timestamptz;
  v_at    timestamptz := clock_timestamp() - interval '5 minutes';
  v_n     int := 0;
  t       pawl.tcc;
BEGIN
  PERFORM pawl.require_read_committed();
  IF NOT pg_try_advisory_xact_lock(pawl.sweep_key(p_ns, 'tcc')) THEN
    RETURN;
  END IF;
  did := 0;
  queues := '{}';
  failed := '{}';
  SELECT f.at INTO v_floor FROM pawl.tcc_floor f WHERE f.ns = p_ns;
  FOR t IN
    SELECT x.* FROM pawl.tcc x WHERE -x.ns = -p_ns AND x.deadline_at >= coalesce(v_floor, '-infinity') AND (x.deadline_at, x.id) > (p_after, p_after_id) AND x.deadline_at <= clock_timestamp()
      AND NOT EXISTS (SELECT FROM pawl.tcc_decision d WHERE d.ns = p_ns AND d.id = x.id) ORDER BY x.deadline_at, x.id LIMIT p_limit
  LOOP
    v_n := v_n + 1;
    BEGIN
      IF NOT pg_try_advisory_xact_lock(pawl.tcc_lock_key(p_ns, t.id)) THEN
        v_at := least(v_at, t.deadline_at);
        CONTINUE;
      END IF;
      -- A new statement: it sees whatever was decided meanwhile.
      CONTINUE WHEN EXISTS (SELECT FROM pawl.tcc_decision d WHERE d.ns = p_ns AND d.id = t.id);
      queues := queues || ARRAY(SELECT q FROM unnest((pawl.tcc_settle(t, false, 'pawl', 'its deadline has passed'))) q WHERE q <> ALL (queues));
      did := did + 1;
    EXCEPTION WHEN OTHERS THEN
      failed := failed || (t.id || ': ' || SQLERRM);
      v_at := least(v_at, t.deadline_at);
    END;
  END LOOP;
  IF v_n = p_limit THEN
    last := t.deadline_at;
    last_id := t.id;
    v_at := least(v_at, last);
  END IF;
  IF p_after_id <> '' THEN  -- what could not be cancelled before in this round is looked at in the next
    v_at := least(v_at, v_floor);
  END IF;
  INSERT INTO pawl.tcc_floor AS f (ns, at) VALUES (p_ns, v_at) ON CONFLICT (ns) DO UPDATE SET at = EXCLUDED.at WHERE f.at <> EXCLUDED.at;
END $$;
-- +goose StatementEnd

-- Looks for branches that are stuck, of the p_limit decisions behind (p_after, p_after_id), and tells of each once: in the outbox, topic pawl.tcc, type tcc.stuck, and as stuck. last NULL: the round is over.
-- +goose StatementBegin
CREATE FUNCTION pawl.sweep_tcc_stuck(p_ns smallint, p_after timestamptz, p_after_id text, p_limit int, OUT stuck text[], OUT last timestamptz, OUT last_id text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_custom_plan SET lock_timeout = '5s' AS $$
DECLARE
  d   record;
  b   record;
  v_n int := 0;
BEGIN
  PERFORM pawl.require_read_committed();
  stuck := '{}';
  FOR d IN SELECT x.id, x.decided_at, x.confirmed FROM pawl.tcc_decision x WHERE -x.ns = -p_ns AND (x.decided_at, x.id) > (p_after, p_after_id) ORDER BY x.decided_at, x.id LIMIT p_limit LOOP
    v_n := v_n + 1;
    last := d.decided_at;
    last_id := d.id;
    CONTINUE WHEN (SELECT count(*) FROM pawl.tcc_end e WHERE e.ns = p_ns AND e.id = d.id) = (SELECT count(*) FROM pawl.tcc_branch e WHERE e.ns = p_ns AND e.id = d.id);
    FOR b IN SELECT s.n, s.kind, s.job_id FROM pawl.tcc_branches(p_ns, d.id) s WHERE s.stuck LOOP
      INSERT INTO pawl.tcc_stuck (ns, id, n, job_id, at) VALUES (p_ns, d.id, b.n, b.job_id, clock_timestamp()) ON CONFLICT DO NOTHING;
      IF FOUND THEN
        stuck := stuck || format('%s/%s.%s', d.id, b.kind, b.n);
        PERFORM pawl.publish(p_ns, 'pawl.tcc', left(d.id, 256), 'tcc.stuck', json_build_object('transaction', d.id, 'branch', b.kind || '.' || b.n, 'op', CASE WHEN d.confirmed THEN 'confirm' ELSE 'cancel' END,
          'job', b.job_id::text));
      END IF;
    END LOOP;
  END LOOP;
  IF v_n < p_limit THEN
    last := NULL;
    last_id := NULL;
  END IF;
END $$;
-- +goose StatementEnd

-- Removes, of the p_limit transactions behind (p_after, p_after_id) whose deadline was p_keep ago, those that are done, and have been for as long. last NULL: the round is over.
-- +goose StatementBegin
CREATE FUNCTION pawl.sweep_tcc_old(p_ns smallint, p_keep interval, p_after timestamptz, p_after_id text, p_limit int, OUT removed int, OUT last timestamptz, OUT last_id text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_custom_plan SET lock_timeout = '5s' AS $$
DECLARE
  v_old timestamptz := clock_timestamp() - p_keep;
  t     record;
  v_n   int := 0;
BEGIN
  removed := 0;
  FOR t IN SELECT x.id, x.deadline_at FROM pawl.tcc x WHERE -x.ns = -p_ns AND (x.deadline_at, x.id) > (p_after, p_after_id) AND x.deadline_at < v_old ORDER BY x.deadline_at, x.id LIMIT p_limit LOOP
    v_n := v_n + 1;
    last := t.deadline_at;
    last_id := t.id;
    CONTINUE WHEN NOT EXISTS (SELECT FROM pawl.tcc_decision d WHERE d.ns = p_ns AND d.id = t.id AND d.decided_at < v_old)
      OR EXISTS (SELECT FROM pawl.tcc_branch b WHERE b.ns = p_ns AND b.id = t.id AND NOT EXISTS (SELECT FROM pawl.tcc_end e WHERE e.ns = p_ns AND e.id = t.id AND e.n = b.n AND e.at < v_old));
    DELETE FROM pawl.tcc_stuck x WHERE x.ns = p_ns AND x.id = t.id;
    DELETE FROM pawl.tcc_end x WHERE x.ns = p_ns AND x.id = t.id;
    DELETE FROM pawl.tcc_job x WHERE x.ns = p_ns AND x.id = t.id;
    DELETE FROM pawl.tcc_decision x WHERE x.ns = p_ns AND x.id = t.id;
    DELETE FROM pawl.tcc_branch x WHERE x.ns = p_ns AND x.id = t.id;
    DELETE FROM pawl.tcc x WHERE x.ns = p_ns AND x.id = t.id;
    removed := removed + 1;
  END LOOP;
  IF v_n < p_limit THEN
    last := NULL;
    last_id := NULL;
  END IF;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pawl.sweep_tcc_old, pawl.sweep_tcc_stuck, pawl.sweep_tcc, pawl.tcc_retry, pawl.tcc_look, pawl.tcc_branches, pawl.tcc_job_over, pawl.tcc_done, pawl.tcc_decide, pawl.tcc_settle, pawl.tcc_enqueue, pawl.tcc_register, pawl.tcc_args,
  pawl.tcc_decided, pawl.tcc_lock, pawl.tcc_begin, pawl.tcc_durable, pawl.tcc_lock_key;
DROP TABLE pawl.tcc_floor, pawl.tcc_stuck, pawl.tcc_end, pawl.tcc_job, pawl.tcc_decision, pawl.tcc_branch, pawl.tcc;
