-- +goose Up

-- What the sweeps did: one row a namespace and sweep. resumed_at: when it ran again after having been away.
CREATE TABLE pawl.sweep (
  ns         smallint    NOT NULL REFERENCES pawl.namespace,
  name       text        NOT NULL,
  ran_at     timestamptz NOT NULL,
  resumed_at timestamptz NOT NULL,
  took_ms    int         NOT NULL,
  did        bigint      NOT NULL,
  did_total  bigint      NOT NULL,
  runs       bigint      NOT NULL,
  error      text,
  PRIMARY KEY (ns, name)
) WITH (fillfactor = 50);

-- Reports a run. A gap longer than p_away since the last one sets resumed_at: everyone gets one ttl from there.
-- +goose StatementBegin
CREATE FUNCTION pawl.sweep_report(p_ns smallint, p_name text, p_started timestamptz, p_did bigint, p_error text, p_away interval DEFAULT '15 s') RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
BEGIN
  INSERT INTO pawl.sweep (ns, name, ran_at, resumed_at, took_ms, did, did_total, runs, error)
    VALUES (p_ns, p_name, clock_timestamp(), clock_timestamp(), extract(epoch FROM clock_timestamp() - p_started) * 1000, p_did, p_did, 1, p_error)
  ON CONFLICT (ns, name) DO UPDATE SET
    ran_at = EXCLUDED.ran_at, took_ms = EXCLUDED.took_ms, did = EXCLUDED.did, did_total = sweep.did_total + EXCLUDED.did, runs = sweep.runs + 1, error = EXCLUDED.error,
    resumed_at = CASE WHEN sweep.ran_at < p_started - p_away THEN EXCLUDED.ran_at ELSE sweep.resumed_at END;
END $$;
-- +goose StatementEnd

-- Whether this transaction is the one to run the sweep; the others skip.
CREATE FUNCTION pawl.sweep_key(p_ns smallint, p_name text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashtextextended($2, (7006::bigint << 16) + $1)';

-- The sweep "sessions", first half: ends those whose time is over. p_grace: how long the sweep may have been away before everyone gets one ttl more.
-- Gives the sessions that are ended and not yet rescued, to be passed to session_rescue one by one, each in a transaction of its own.
-- +goose StatementBegin
CREATE FUNCTION pawl.sweep_sessions(p_ns smallint, p_limit int) RETURNS bigint[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_custom_plan SET lock_timeout = '2s' AS $$
DECLARE
  v_started timestamptz := clock_timestamp();
  v_resumed timestamptz;
  v_away    interval;  -- a gap in which a session could run out while nobody swept; the sweep runs every 5 s
  v_session bigint;
  v_did     bigint := 0;
BEGIN
  PERFORM pawl.require_read_committed();
  IF NOT pg_try_advisory_xact_lock(pawl.sweep_key(p_ns, 'sessions')) THEN
    RETURN NULL;
  END IF;
  SELECT greatest(interval '7.5 s', least(interval '15 s', min(s.ttl))) INTO v_away
    FROM pawl.session s WHERE s.ns = p_ns AND s.rescued_at IS NULL AND s.ended_at IS NULL;
  SELECT CASE WHEN w.ran_at < v_started - v_away THEN v_started ELSE w.resumed_at END INTO v_resumed
    FROM pawl.sweep w WHERE w.ns = p_ns AND w.name = 'sessions';
  v_resumed := greatest(coalesce(v_resumed, v_started), pg_postmaster_start_time());
  FOR v_session IN SELECT s.id FROM pawl.session s
      WHERE s.ns = p_ns AND s.rescued_at IS NULL AND s.ended_at IS NULL AND s.expires_at < v_started AND v_resumed + s.ttl < v_started
      ORDER BY s.id LIMIT p_limit LOOP
    -- Busy: a claim of it is in flight; the next sweep finds it.
    CONTINUE WHEN NOT pg_try_advisory_xact_lock(pawl.session_key(v_session));
    UPDATE pawl.session s SET ended_at = clock_timestamp(), ended_why = 'expired'
      WHERE s.ns = p_ns AND s.id = v_session AND s.ended_at IS NULL AND s.expires_at < clock_timestamp();
    IF FOUND THEN
      v_did := v_did + 1;
    END IF;
  END LOOP;
  PERFORM pawl.sweep_report(p_ns, 'sessions', v_started, v_did, NULL, v_away);
  RETURN ARRAY(SELECT s.id FROM pawl.session s WHERE s.ns = p_ns AND s.rescued_at IS NULL AND s.ended_at IS NOT NULL ORDER BY s.id LIMIT p_limit);
END $$;
-- +goose StatementEnd

-- Puts back in line what an ended session had open, up to p_limit claims of it; its end was committed before, so nothing comes after what is read here.
-- left: claims remain, call again. Safe to run anywhere, any number of times.
-- +goose StatementBegin
CREATE FUNCTION pawl.session_rescue(p_ns smallint, p_session bigint, p_limit int, OUT jobs int, OUT left_over boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET lock_timeout = '2s' AS $$
DECLARE
  v_detail json;
  v_clear  bigint;
  v_open   bigint[];
  v_claims bigint[];
  v_n      int;
BEGIN
  jobs := 0;
  left_over := false;
  PERFORM pg_advisory_xact_lock(pawl.session_key(p_session));
  SELECT s.claims_clear, s.claims_open, json_build_object('error', format('session %s of %s (%s, pid %s) ended: %s', s.id, s.name, s.host, s.pid, s.ended_why))
    INTO v_clear, v_open, v_detail
    FROM pawl.session s WHERE s.ns = p_ns AND s.id = p_session AND s.ended_at IS NOT NULL AND s.rescued_at IS NULL;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  v_claims := ARRAY(
    (SELECT o FROM unnest(v_open) o)
    UNION ALL
    (SELECT c.id FROM pawl.claim c WHERE -c.ns = -p_ns AND c.session_id = p_session AND -c.id <= -v_clear AND c.id >= v_clear ORDER BY -c.id DESC LIMIT p_limit)
    LIMIT p_limit);
  jobs := pawl.claim_give_back(p_ns, v_claims, 'lost', v_detail);
  v_n := cardinality(v_claims);
  left_over := v_n = p_limit;
  UPDATE pawl.session s SET claims_clear = greatest(v_clear, v_claims[v_n] + 1), claims_open = v_open[v_n + 1:], rescued_at = CASE WHEN NOT left_over THEN clock_timestamp() END
    WHERE s.ns = p_ns AND s.id = p_session;
END $$;
-- +goose StatementEnd

-- The sweep "due": moves up to p_limit due jobs to the line, in the order of their time, from p_from on (NULL: from the front; a job scheduled by a transaction that
-- committed after its time is found only so). Gives the queues that got work and how long until the next job is due (NULL: none is waiting).
-- moved NULL: another node is at it.
-- +goose StatementBegin
CREATE FUNCTION pawl.sweep_due(p_ns smallint, p_from timestamptz, p_limit int, OUT moved int, OUT queue_ids int[], OUT next_in interval, OUT moved_to timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_custom_plan SET lock_timeout = '2s' AS $$
DECLARE
  v_now        timestamptz := clock_timestamp();
  v_from       timestamptz := coalesce(p_from, '-infinity');
  v_jobs       bigint[];
  v_queues     int[];
  v_priorities smallint[];
  v_attempts   smallint[];
BEGIN
  IF NOT pg_try_advisory_xact_lock(pawl.sweep_key(p_ns, 'due')) THEN
    RETURN;
  END IF;
  SELECT count(*), max(d.run_at), array_agg(DISTINCT d.queue_id), array_agg(d.job_id), array_agg(d.queue_id), array_agg(d.priority), array_agg(d.attempt)
    INTO moved, moved_to, queue_ids, v_jobs, v_queues, v_priorities, v_attempts
    FROM (
      SELECT x.* FROM pawl.scheduled x WHERE -x.ns = -p_ns AND x.run_at >= v_from AND x.run_at <= v_now
      ORDER BY x.run_at, x.job_id LIMIT p_limit FOR UPDATE SKIP LOCKED) d;
  -- One by one and LATERAL … OFFSET 0: whatever the statistics say, each row is found by its whole key.
  FOR i IN 1 .. moved LOOP
    DELETE FROM pawl.scheduled d WHERE d.ns = p_ns AND d.job_id = v_jobs[i];
  END LOOP;
  INSERT INTO pawl.ready (xid, job_id, jobs, queue_id, ns, priority, epoch, attempt, again)
    SELECT pg_current_xact_id(), d.job_id, 1, d.queue_id, p_ns, d.priority, l.epoch, d.attempt, true
    FROM ROWS FROM (unnest(v_jobs), unnest(v_queues), unnest(v_priorities), unnest(v_attempts)) d(job_id, queue_id, priority, attempt)
    CROSS JOIN LATERAL (SELECT x.epoch FROM pawl.line x WHERE x.ns = p_ns AND x.queue_id = d.queue_id AND x.priority = d.priority OFFSET 0) l;
  PERFORM pawl.raise_moved(q.name) FROM unnest(queue_ids) k
    CROSS JOIN LATERAL (SELECT FROM pawl.line x WHERE x.ns = p_ns AND x.queue_id = k
      AND NOT pawl.is_home(x.cluster) LIMIT 1) l
    CROSS JOIN LATERAL (SELECT x.name FROM pawl.queue x WHERE x.ns = p_ns AND x.id = k OFFSET 0) q;
  SELECT d.run_at - clock_timestamp() INTO next_in FROM pawl.scheduled d
    WHERE -d.ns = -p_ns AND d.run_at >= coalesce(moved_to, v_from) ORDER BY d.run_at LIMIT 1;
END $$;
-- +goose StatementEnd

-- The sweep "dedupe": removes keys whose time or job is over, up to p_limit. What an enqueue took anew meanwhile is locked or seen changed, and stays.
-- p_after: goes on behind this key (kind, key), so that a round passes over all of them; last_* NULL: the round is done.
-- +goose StatementBegin
CREATE FUNCTION pawl.sweep_dedupe(p_ns smallint, p_after_kind text, p_after_key text, p_limit int, OUT removed int, OUT last_kind text, OUT last_key text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_custom_plan SET lock_timeout = '2s' AS $$
DECLARE
  d   record;
  v_n int := 0;
BEGIN
  removed := 0;
  IF NOT pg_try_advisory_xact_lock(pawl.sweep_key(p_ns, 'dedupe')) THEN
    RETURN;
  END IF;
  FOR d IN SELECT x.kind, x.key, x.job_id FROM pawl.dedupe x WHERE x.ns = p_ns AND (x.kind, x.key) > (coalesce(p_after_kind, ''), coalesce(p_after_key, ''))
      ORDER BY x.kind, x.key LIMIT p_limit FOR UPDATE SKIP LOCKED LOOP
    v_n := v_n + 1;
    last_kind := d.kind;
    last_key := d.key;
    DELETE FROM pawl.dedupe x WHERE x.ns = p_ns AND x.kind = d.kind AND x.key = d.key AND x.job_id = d.job_id
      AND (x.until < clock_timestamp() OR x.until IS NULL AND pawl.job_finished(p_ns, x.job_id));
    IF FOUND THEN
      removed := removed + 1;
    END IF;
  END LOOP;
  IF v_n < p_limit THEN
    last_kind := NULL;
    last_key := NULL;
  END IF;
END $$;
-- +goose StatementEnd

-- After a dump and restore, a copy or pg_upgrade: takes each line of another cluster home, and those that stand in this one's future. Its newest claim's position becomes its base, its epoch counts up,
-- and rows of earlier epochs count as settled. Tokens of locks go on above those there are, the outbox begins a new epoch. No Pawl process may run meanwhile in the old place. Gives the number of lines, the outbox counted as one.
-- +goose StatementBegin
CREATE FUNCTION pawl.rebase(p_ns smallint) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  k         record;
  l         record;
  v_cluster bigint := pawl.cluster();
  v_n       int := 0;
BEGIN
  PERFORM pawl.partition_ahead();  -- this cluster's xids may be beyond every range
  FOR k IN SELECT x.queue_id, x.priority FROM pawl.line x WHERE x.ns = p_ns ORDER BY x.queue_id, x.priority LOOP
    PERFORM pg_advisory_xact_lock(pawl.line_key(p_ns, k.queue_id, k.priority));
    SELECT p.* INTO l FROM pawl.line_position(p_ns, k.queue_id, k.priority) p;
    UPDATE pawl.line x SET epoch = x.epoch + 1, cluster = v_cluster, base_epoch = l.c_epoch, base_xid = l.c_xid, base_id = l.c_id, base_taken = l.c_taken,
        base_late_xid = l.late_xid, base_late_id = l.late_id, base_late_taken = l.late_taken
      WHERE x.ns = p_ns AND x.queue_id = k.queue_id AND x.priority = k.priority
        AND (x.cluster <> v_cluster OR l.c_epoch = l.epoch AND l.c_xid >= pg_snapshot_xmax(pg_current_snapshot()));
    IF FOUND THEN
      v_n := v_n + 1;
    END IF;
  END LOOP;
  PERFORM pawl.lock_rebase();
  IF pawl.outbox_rebase(p_ns) THEN
    v_n := v_n + 1;
  END IF;
  RETURN v_n;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pawl.rebase, pawl.sweep_dedupe, pawl.sweep_due, pawl.session_rescue, pawl.sweep_sessions, pawl.sweep_key, pawl.sweep_report;
DROP TABLE pawl.sweep;
