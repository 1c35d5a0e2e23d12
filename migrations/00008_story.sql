-- +goose Up

-- A job's attempts, oldest first: each place in line it ever had, the claim that covers it and the receipt that ended it.
-- The covering claim is the first that has passed the place: it stands at or beyond it and does not list it as a straggler's, or not any more. Once
-- passed it stays so for all claims after it, hence a binary search. A claim that passed it without taking it found it cancelled.
-- +goose StatementBegin
CREATE FUNCTION pawl.ready_claim(p_ns smallint, p_queue int, p_priority smallint, p_epoch smallint, p_xid xid8, p_ready bigint, p_job bigint, p_attempt smallint,
  OUT claim_id bigint, OUT ordinal int)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_to   smallint;
  v_nth  int := p_job - p_ready + 1;
  v_low  bigint;
  v_mid  bigint;
  v_high bigint;
  c      record;
BEGIN
  SELECT l.epoch INTO v_to FROM pawl.line l WHERE l.ns = p_ns AND l.queue_id = p_queue AND l.priority = p_priority;
  FOR e IN p_epoch .. coalesce(v_to, p_epoch) LOOP
    SELECT x.id INTO v_low FROM pawl.claim x
      WHERE -x.ns = -p_ns AND x.queue_id = p_queue AND x.priority = p_priority AND x.epoch = e ORDER BY -x.id DESC LIMIT 1;
    SELECT x.id INTO v_high FROM pawl.claim x
      WHERE -x.ns = -p_ns AND x.queue_id = p_queue AND x.priority = p_priority AND x.epoch = e ORDER BY -x.id LIMIT 1;
    v_mid := v_high;  -- first the newest: if it has not passed, none of this epoch has
    WHILE v_mid IS NOT NULL LOOP
      SELECT x.id,
          (x.cursor_epoch, x.cursor_xid, x.cursor_id, x.cursor_taken) >= (p_epoch, p_xid, p_ready, v_nth)
          AND (x.cursor_epoch > p_epoch OR NOT EXISTS (
            SELECT FROM ROWS FROM (unnest(x.late_xid), unnest(x.late_id), unnest(x.late_taken)) u(xid, id, taken)
            WHERE u.xid = p_xid AND (u.id, u.taken) < (p_ready, v_nth))) AS passed
        INTO c FROM pawl.claim x
        WHERE -x.ns = -p_ns AND x.queue_id = p_queue AND x.priority = p_priority AND x.epoch = e
          AND -x.id <= -v_mid AND x.id >= v_mid ORDER BY -x.id DESC LIMIT 1;
      IF c.passed THEN
        v_high := v_mid;
      ELSE
        v_low := c.id + 1;
      END IF;
      v_mid := CASE WHEN v_low < v_high THEN v_low + (v_high - v_low) / 2 END;
    END LOOP;
    CONTINUE WHEN v_high IS NULL OR v_low > v_high;
    SELECT x.id, (u.before + p_job - u.first)::int INTO claim_id, ordinal
      FROM (
        SELECT y.* FROM pawl.claim y
        WHERE -y.ns = -p_ns AND y.queue_id = p_queue AND y.priority = p_priority AND y.epoch = e
          AND -y.id <= -v_low AND y.id >= v_low ORDER BY -y.id DESC LIMIT 1) x
      CROSS JOIN LATERAL (
        SELECT t.first, t.n, t.attempt, sum(t.n) OVER (ROWS UNBOUNDED PRECEDING) - t.n AS before
        FROM ROWS FROM (unnest(x.job_ids), unnest(x.job_counts), unnest(x.attempts)) t(first, n, attempt)) u
      WHERE p_job >= u.first AND p_job < u.first + u.n AND u.attempt = p_attempt;
    RETURN;
  END LOOP;
END $$;
-- +goose StatementEnd

-- The places in line that a job ever had.
-- +goose StatementBegin
CREATE FUNCTION pawl.job_places(p_ns smallint, p_job bigint)
RETURNS TABLE (attempt smallint, queue_id int, priority smallint, epoch smallint, xid xid8, ready_id bigint)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  j pawl.job;
BEGIN
  SELECT b.* INTO j FROM pawl.job b WHERE b.ns = p_ns AND b.id = p_job;
  RETURN QUERY
    SELECT p.attempt, p.queue_id, p.priority, p.epoch, p.xid, p.job_id
    FROM (
      (SELECT y.* FROM pawl.ready y
        WHERE y.ns = p_ns AND y.queue_id = j.queue_id AND y.priority = j.priority AND y.epoch = j.epoch AND y.xid = j.xid AND y.job_id <= p_job AND NOT y.again
        ORDER BY y.job_id DESC LIMIT 1)
      UNION ALL
      SELECT y.* FROM pawl.ready y WHERE y.ns = p_ns AND y.job_id = p_job AND y.again) p
    WHERE p_job < p.job_id + p.jobs;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION pawl.job_attempts(p_ns smallint, p_job bigint)
RETURNS TABLE (attempt smallint, epoch smallint, xid xid8, ready_id bigint, claim_id bigint, ordinal int, session_id bigint, claimed_at timestamptz,
  outcome pawl.outcome, ended_at timestamptz, detail json)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
  RETURN QUERY
    SELECT p.attempt, p.epoch, p.xid, p.ready_id, c.claim_id, c.ordinal, k.session_id, k.claimed_at, r.outcome, r.at, r.detail
    FROM pawl.job_places(p_ns, p_job) p
    LEFT JOIN LATERAL pawl.ready_claim(p_ns, p.queue_id, p.priority, p.epoch, p.xid, p.ready_id, p_job, p.attempt) c ON true
    LEFT JOIN LATERAL (SELECT y.session_id, y.claimed_at FROM pawl.claim y WHERE y.ns = p_ns AND y.id = c.claim_id OFFSET 0) k ON true  -- by primary key, not by reading all claims
    LEFT JOIN LATERAL (SELECT z.outcome, z.at, z.detail FROM pawl.receipt z WHERE z.ns = p_ns AND z.claim_id = c.claim_id AND z.jobs @> c.ordinal LIMIT 1) r ON true
    ORDER BY p.attempt, coalesce(r.at, 'infinity'), k.claimed_at;
END $$;
-- +goose StatementEnd

CREATE TYPE pawl.job_state AS ENUM ('scheduled', 'retrying', 'available', 'running', 'succeeded', 'discarded', 'cancelled');

-- What a job is doing, derived from what was appended about it. state NULL: there is no such job. at: since when it is so (available, NULL) or
-- when it ended; run_at of a scheduled one.
-- +goose StatementBegin
CREATE FUNCTION pawl.job_state(p_ns smallint, p_job bigint,
  OUT state pawl.job_state, OUT attempt smallint, OUT at timestamptz, OUT claim_id bigint, OUT ordinal int, OUT session_id bigint,
  OUT epoch smallint, OUT xid xid8, OUT ready_id bigint)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  a record;
  c record;
BEGIN
  IF NOT EXISTS (SELECT FROM pawl.job b WHERE b.ns = p_ns AND b.id = p_job) THEN
    RETURN;
  END IF;
  SELECT s.run_at, s.attempt INTO job_state.at, job_state.attempt FROM pawl.scheduled s WHERE s.ns = p_ns AND s.job_id = p_job;
  IF FOUND THEN
    state := CASE WHEN EXISTS (SELECT FROM pawl.job_places(p_ns, p_job)) THEN 'retrying' ELSE 'scheduled' END;
    RETURN;
  END IF;
  -- What was cancelled while it waited goes on with another attempt, or not at all.
  SELECT k.attempt, k.at INTO c FROM pawl.cancellation k WHERE k.ns = p_ns AND k.job_id = p_job AND k.claim_id IS NULL ORDER BY k.attempt DESC LIMIT 1;
  IF FOUND AND NOT EXISTS (SELECT FROM pawl.job_places(p_ns, p_job) p WHERE p.attempt > c.attempt) THEN
    state := 'cancelled';
    attempt := c.attempt;
    at := c.at;
    RETURN;
  END IF;
  -- The newest place tells; those before it ended so that the job went on. (A snoozed attempt has several places, in the order of their xids.)
  FOR a IN SELECT p.* FROM pawl.job_places(p_ns, p_job) p ORDER BY p.attempt DESC, p.epoch DESC, p.xid DESC LOOP
    SELECT x.claim_id, x.ordinal INTO job_state.claim_id, job_state.ordinal
      FROM pawl.ready_claim(p_ns, a.queue_id, a.priority, a.epoch, a.xid, a.ready_id, p_job, a.attempt) x;
    SELECT k.session_id, k.claimed_at, r.outcome, r.at INTO c
      FROM pawl.claim k
      LEFT JOIN LATERAL (SELECT z.outcome, z.at FROM pawl.receipt z WHERE z.ns = p_ns AND z.claim_id = k.id AND z.jobs @> job_state.ordinal LIMIT 1) r ON true
      WHERE k.ns = p_ns AND k.id = job_state.claim_id;
    CONTINUE WHEN c.outcome IN ('failed', 'snoozed', 'returned', 'lost');
    state := CASE WHEN claim_id IS NULL THEN 'available' WHEN c.outcome IS NULL THEN 'running' ELSE c.outcome::text END::pawl.job_state;
    attempt := a.attempt;
    at := coalesce(c.at, c.claimed_at);
    session_id := c.session_id;
    epoch := a.epoch;
    xid := a.xid;
    ready_id := a.ready_id;
    RETURN;
  END LOOP;
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION pawl.job_finished(p_ns smallint, p_job bigint) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN coalesce((SELECT s.state IN ('succeeded', 'discarded', 'cancelled') FROM pawl.job_state(p_ns, p_job) s), true);
END $$;
-- +goose StatementEnd

-- Refuses to touch a job of a saga, which must hear of it.
-- +goose StatementBegin
CREATE FUNCTION pawl.refuse_step(p_ns smallint, p_job bigint) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_saga text;
BEGIN
  SELECT s.key INTO v_saga FROM pawl.job b JOIN pawl.saga s ON s.ns = p_ns AND s.id = b.saga_id WHERE b.ns = p_ns AND b.id = p_job;
  IF FOUND THEN
    RAISE EXCEPTION 'pawl: job % is a step of saga %', p_job, v_saga USING ERRCODE = 'PW005', HINT = 'Cancel or retry the saga instead.';
  END IF;
END $$;
-- +goose StatementEnd

-- Cancels a job, in the caller's transaction. was: what it was when this call looked, under the line's lock, so that no claim is in flight. scheduled, retrying or
-- available: it is cancelled and will not run. running: its process is asked, and the receipt will tell; session_id is whom to hint. A finished one stays.
-- +goose StatementBegin
CREATE FUNCTION pawl.job_cancel(p_ns smallint, p_job bigint, p_reason text, OUT was pawl.job_state, OUT session_id bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pawl.refuse_step(p_ns, p_job);
  SELECT w.was, w.session_id INTO was, session_id FROM pawl.job_withdraw(p_ns, p_job, p_reason) w;
END $$;
-- +goose StatementEnd

-- What job_cancel does, for steps of sagas too: their caller has the saga hear of it.
-- +goose StatementBegin
CREATE FUNCTION pawl.job_withdraw(p_ns smallint, p_job bigint, p_reason text, OUT was pawl.job_state, OUT session_id bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '10s' AS $$
DECLARE
  j record;
  s record;
  v_attempt smallint;
BEGIN
  PERFORM pawl.require_read_committed();
  SELECT b.queue_id, b.priority INTO j FROM pawl.job b WHERE b.ns = p_ns AND b.id = p_job;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  PERFORM pg_advisory_xact_lock(pawl.line_key(p_ns, j.queue_id, j.priority));
  SELECT x.* INTO s FROM pawl.job_state(p_ns, p_job) x;
  IF s.state = 'running' THEN
    -- Its ending may be in flight, and would not see the request: waited for as finish_tx waits, then looked at again.
    PERFORM pg_advisory_xact_lock_shared(pawl.claim_key(s.claim_id));
    PERFORM pg_advisory_xact_lock(hashint8extended(s.claim_id, 7004 + s.ordinal));
  END IF;
  DELETE FROM pawl.scheduled d WHERE d.ns = p_ns AND d.job_id = p_job RETURNING d.attempt INTO v_attempt;
  IF FOUND THEN
    was := CASE WHEN s.state = 'scheduled' THEN 'scheduled' ELSE 'retrying' END;
    INSERT INTO pawl.cancellation (ns, job_id, attempt, at, queue_id, priority, reason) VALUES (p_ns, p_job, v_attempt, clock_timestamp(), j.queue_id, j.priority, p_reason);
    RETURN;
  END IF;
  SELECT x.* INTO s FROM pawl.job_state(p_ns, p_job) x;
  was := s.state;
  IF was = 'available' THEN
    INSERT INTO pawl.cancellation (ns, job_id, attempt, at, queue_id, priority, epoch, xid, ready_id, reason)
      VALUES (p_ns, p_job, s.attempt, clock_timestamp(), j.queue_id, j.priority, s.epoch, s.xid, s.ready_id, p_reason);
  ELSIF was = 'running' THEN
    session_id := s.session_id;
    INSERT INTO pawl.cancellation (ns, job_id, attempt, at, queue_id, priority, claim_id, ordinal, session_id, reason)
      VALUES (p_ns, p_job, s.attempt, clock_timestamp(), j.queue_id, j.priority, s.claim_id, s.ordinal, s.session_id, p_reason) ON CONFLICT DO NOTHING;
  END IF;
END $$;
-- +goose StatementEnd

-- Runs a job again now, in the caller's transaction. was as above: scheduled and retrying ones are moved to the line, finished ones get one attempt more;
-- available and running ones are left alone. The line's lock keeps two retries apart.
-- +goose StatementBegin
CREATE FUNCTION pawl.job_retry(p_ns smallint, p_job bigint, OUT was pawl.job_state)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '10s' AS $$
DECLARE
  j record;
  s record;
  v_attempt smallint;
BEGIN
  PERFORM pawl.require_read_committed();
  PERFORM pawl.refuse_step(p_ns, p_job);
  SELECT b.queue_id, b.priority INTO j FROM pawl.job b WHERE b.ns = p_ns AND b.id = p_job;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  PERFORM pg_advisory_xact_lock(pawl.line_key(p_ns, j.queue_id, j.priority));
  SELECT x.* INTO s FROM pawl.job_state(p_ns, p_job) x;
  DELETE FROM pawl.scheduled d WHERE d.ns = p_ns AND d.job_id = p_job RETURNING d.attempt INTO v_attempt;
  IF FOUND THEN
    was := CASE WHEN s.state = 'scheduled' THEN 'scheduled' ELSE 'retrying' END;
    PERFORM pawl.job_again(p_ns, p_job, j.queue_id, j.priority, v_attempt);
    RETURN;
  END IF;
  SELECT x.* INTO s FROM pawl.job_state(p_ns, p_job) x;
  was := s.state;
  IF was IN ('succeeded', 'discarded', 'cancelled') THEN
    PERFORM pawl.job_again(p_ns, p_job, j.queue_id, j.priority, (s.attempt + 1)::smallint);
  END IF;
END $$;
-- +goose StatementEnd

-- What waits in each queue, by name behind p_after. available is counted up to p_available_max a line; oldest_s is the age of the first job in line.
-- +goose StatementBegin
CREATE FUNCTION pawl.queue_depths(p_ns smallint, p_after text, p_limit int, p_available_max int)
RETURNS TABLE (name text, paused_at timestamptz, created_at timestamptz, available bigint, scheduled bigint, oldest_s float8)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
  q record;
  k record;
  l record;
  t record;
BEGIN
  FOR q IN SELECT x.id, x.name, x.paused_at, x.created_at FROM pawl.queue x WHERE x.ns = p_ns AND x.name > p_after ORDER BY x.name LIMIT p_limit LOOP
    name := q.name;
    paused_at := q.paused_at;
    created_at := q.created_at;
    available := 0;
    oldest_s := 0;
    SELECT count(*) INTO scheduled FROM (SELECT FROM pawl.scheduled d WHERE d.ns = p_ns AND -d.queue_id = -q.id LIMIT p_available_max) d;
    FOR k IN SELECT x.priority FROM pawl.line x WHERE x.ns = p_ns AND x.queue_id = q.id ORDER BY x.priority LOOP
      SELECT p.* INTO l FROM pawl.line_position(p_ns, q.id, k.priority) p;
      FOR e IN l.c_epoch .. l.epoch LOOP
        SELECT x.* INTO t FROM pawl.line_take(p_ns, q.id, k.priority, e::smallint,
          CASE WHEN e = l.c_epoch THEN l.c_xid ELSE '0' END, CASE WHEN e = l.c_epoch THEN l.c_id ELSE 0 END, CASE WHEN e = l.c_epoch THEN l.c_taken ELSE 0 END,
          '18446744073709551615', NULL, p_available_max) x;
        available := available + t.jobs;
        SELECT greatest(oldest_s, extract(epoch FROM clock_timestamp() - j.created_at)) INTO oldest_s
          FROM (SELECT coalesce(t.job_ids[1], 0) AS id) f LEFT JOIN pawl.job j ON j.ns = p_ns AND j.id = f.id;
      END LOOP;
      FOR i IN 1 .. coalesce(cardinality(l.late_xid), 0) LOOP
        SELECT x.* INTO t FROM pawl.line_take(p_ns, q.id, k.priority, l.c_epoch, l.late_xid[i], l.late_id[i], l.late_taken[i], l.late_xid[i], NULL, p_available_max) x;
        available := available + t.jobs;
      END LOOP;
    END LOOP;
    RETURN NEXT;
  END LOOP;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pawl.queue_depths, pawl.job_retry, pawl.job_withdraw, pawl.job_cancel, pawl.refuse_step, pawl.job_finished, pawl.job_state, pawl.job_attempts, pawl.job_places, pawl.ready_claim;
DROP TYPE pawl.job_state;
