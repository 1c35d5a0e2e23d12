-- +goose Up

-- What is checked under a lock is read in a later statement, which must see what was committed meanwhile.
-- +goose StatementBegin
CREATE FUNCTION pawl.require_read_committed() RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'pawl: this needs a READ COMMITTED transaction, not %', upper(current_setting('transaction_isolation')) USING ERRCODE = 'PW005',
      HINT = 'Begin the transaction so, or set default_transaction_isolation of the role or database to ''read committed''.';
  END IF;
END $$;
-- +goose StatementEnd

-- The ordinals of a claim that have no receipt yet, among p_jobs (NULL: all).
-- +goose StatementBegin
CREATE FUNCTION pawl.claim_open(p_ns smallint, p_claim bigint, p_jobs int4multirange DEFAULT NULL) RETURNS int4multirange
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_open int4multirange;
BEGIN
  SELECT int4multirange(int4range(0, c.jobs)) * coalesce(p_jobs, int4multirange(int4range(0, c.jobs)))
      - coalesce((SELECT range_agg(u) FROM pawl.receipt r CROSS JOIN LATERAL unnest(r.jobs) u WHERE r.ns = p_ns AND r.claim_id = p_claim), '{}')
    INTO v_open FROM pawl.claim c WHERE c.ns = p_ns AND c.id = p_claim;
  RETURN coalesce(v_open, '{}');
END $$;
-- +goose StatementEnd

-- Ends jobs as succeeded: p_jobs[i] are ordinals of p_claims[i] (distinct, in ascending order). One transaction for all. Gives for each claim
-- what was lost: the ordinals that did not count, since the session has ended, the claim is another's or they have a receipt. NULL: nothing lost.
-- +goose StatementBegin
CREATE FUNCTION pawl.finish(p_ns smallint, p_session bigint, p_claims bigint[], p_nonces bigint[], p_jobs int4multirange[]) RETURNS int4multirange[]
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_alive boolean;
  v_good  int4multirange[];
BEGIN
  PERFORM pawl.require_read_committed();
  FOR i IN 1 .. cardinality(p_claims) LOOP
    IF p_claims[i] <= p_claims[i - 1] THEN  -- in this order nobody waits in a circle; and what is named twice would end twice
      RAISE EXCEPTION 'pawl: claim % is named after claim %: they must ascend', p_claims[i], p_claims[i - 1] USING ERRCODE = 'PW005';
    END IF;
    PERFORM pg_advisory_xact_lock(pawl.claim_key(p_claims[i]));
  END LOOP;
  v_alive := EXISTS (SELECT FROM pawl.session s WHERE s.ns = p_ns AND s.id = p_session AND s.ended_at IS NULL);
  -- A new statement: its snapshot has every receipt that was committed under the locks.
  -- int4range(0, NULL) has no end: what is not found must not be asked for its jobs.
  SELECT array_agg(CASE WHEN c.id IS NULL THEN '{}' ELSE
        t.jobs * int4multirange(int4range(0, c.jobs))
          - coalesce((SELECT range_agg(u) FROM pawl.receipt r CROSS JOIN LATERAL unnest(r.jobs) u WHERE r.ns = p_ns AND r.claim_id = t.claim_id), '{}')
        END ORDER BY t.i)
    INTO v_good
    FROM ROWS FROM (unnest(p_claims), unnest(p_nonces), unnest(p_jobs)) WITH ORDINALITY t(claim_id, nonce, jobs, i)
    -- By primary key, claim by claim: + 0 and OFFSET 0 keep the planner from seeking all claims of the session instead.
    LEFT JOIN LATERAL (
      SELECT x.id, x.jobs FROM pawl.claim x
      WHERE x.ns = p_ns AND x.id = t.claim_id AND x.nonce = t.nonce AND x.session_id + 0 = p_session OFFSET 0) c ON v_alive;
  INSERT INTO pawl.receipt (claim_id, at, ns, outcome, jobs)
    SELECT t.claim_id, clock_timestamp(), p_ns, 'succeeded', t.jobs
    FROM ROWS FROM (unnest(p_claims), unnest(v_good)) t(claim_id, jobs)
    WHERE NOT isempty(t.jobs);
  IF v_good = p_jobs THEN
    RETURN NULL;
  END IF;
  RETURN ARRAY(SELECT t.jobs - t.good FROM ROWS FROM (unnest(p_jobs), unnest(v_good)) WITH ORDINALITY t(jobs, good, i) ORDER BY t.i);
END $$;
-- +goose StatementEnd

-- The time a failed attempt waits: backoff_ms doubled with each attempt, capped, ± 20 % so that failures of one cause do not return together.
-- +goose StatementBegin
CREATE FUNCTION pawl.backoff(p_attempt smallint, p_backoff_ms int, p_backoff_ms_max int) RETURNS interval
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN make_interval(secs => least(coalesce(p_backoff_ms, 1000) * 2.0 ^ least(p_attempt - 1, 30), coalesce(p_backoff_ms_max, 3600000))
    * (0.8 + 0.4 * random()) / 1000);
END $$;
-- +goose StatementEnd

-- Puts a job in line again, or among the scheduled if p_run_at is to come.
-- +goose StatementBegin
CREATE FUNCTION pawl.job_again(p_ns smallint, p_job bigint, p_queue int, p_priority smallint, p_attempt smallint, p_run_at timestamptz DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_epoch   smallint;
  v_cluster bigint;
BEGIN
  IF p_run_at > clock_timestamp() THEN
    INSERT INTO pawl.scheduled (run_at, job_id, queue_id, ns, priority, attempt) VALUES (p_run_at, p_job, p_queue, p_ns, p_priority, p_attempt);
  ELSE
    SELECT l.epoch, l.cluster INTO v_epoch, v_cluster FROM pawl.line l WHERE l.ns = p_ns AND l.queue_id = p_queue AND l.priority = p_priority;
    IF NOT pawl.is_home(v_cluster) THEN
      PERFORM pawl.raise_moved(q.name) FROM pawl.queue q WHERE q.ns = p_ns AND q.id = p_queue;
    END IF;
    INSERT INTO pawl.ready (xid, job_id, jobs, queue_id, ns, priority, epoch, attempt, again)
      VALUES (pg_current_xact_id(), p_job, 1, p_queue, p_ns, p_priority, v_epoch, p_attempt, true) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
      RAISE EXCEPTION 'pawl: job % has been put in line by this transaction before', p_job USING ERRCODE = 'PW005', HINT = 'Commit between the two.';
    END IF;
  END IF;
END $$;
-- +goose StatementEnd

-- Ends one attempt whose claim the caller has locked and found open: appends the receipt and puts the job back where it goes again. Gives the
-- outcome that counts: an attempt that was asked to cancel and did not succeed is cancelled, one that failed or was lost with none left is discarded.
-- p_delay NULL: by the job's backoff. A kind that keeps no result gives NULL.
-- +goose StatementBegin
CREATE FUNCTION pawl.attempt_end(p_ns smallint, p_claim bigint, p_ordinal int, p_job bigint, p_attempt smallint, p_outcome pawl.outcome, p_detail json, p_delay interval, p_result json)
RETURNS pawl.outcome
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_outcome pawl.outcome := p_outcome;
  j         record;
BEGIN
  SELECT b.id, b.queue_id, b.priority, b.max_attempts, b.backoff_ms, b.backoff_ms_max, p_attempt AS attempt INTO j
    FROM pawl.job b WHERE b.ns = p_ns AND b.id = p_job;
  IF v_outcome IN ('failed', 'lost', 'snoozed', 'returned')
      AND EXISTS (SELECT FROM pawl.cancellation c WHERE c.ns = p_ns AND c.job_id = j.id AND c.attempt = j.attempt) THEN
    v_outcome := 'cancelled';
  ELSIF v_outcome IN ('failed', 'lost') AND j.attempt >= j.max_attempts THEN
    v_outcome := 'discarded';
  END IF;
  INSERT INTO pawl.receipt (claim_id, at, ns, outcome, jobs, detail)
    VALUES (p_claim, clock_timestamp(), p_ns, v_outcome, int4multirange(int4range(p_ordinal, p_ordinal + 1)), p_detail);
  CASE v_outcome
    WHEN 'succeeded' THEN
      IF p_result IS NOT NULL THEN
        INSERT INTO pawl.result (ns, job_id, at, value) VALUES (p_ns, j.id, clock_timestamp(), p_result)
          ON CONFLICT (ns, job_id) DO UPDATE SET at = excluded.at, value = excluded.value;  -- of a job that succeeded before and was retried
      END IF;
    WHEN 'failed' THEN
      PERFORM pawl.job_again(p_ns, j.id, j.queue_id, j.priority, (j.attempt + 1)::smallint,
        clock_timestamp() + coalesce(p_delay, pawl.backoff(j.attempt, j.backoff_ms, j.backoff_ms_max)));
    WHEN 'lost' THEN
      PERFORM pawl.job_again(p_ns, j.id, j.queue_id, j.priority, (j.attempt + 1)::smallint, clock_timestamp() + p_delay);
    WHEN 'snoozed', 'returned' THEN
      PERFORM pawl.job_again(p_ns, j.id, j.queue_id, j.priority, j.attempt, clock_timestamp() + p_delay);
    WHEN 'discarded', 'cancelled' THEN
      NULL;
  END CASE;
  RETURN v_outcome;
END $$;
-- +goose StatementEnd

-- The job at an ordinal of a claim, and its attempt. No row: the claim has no such ordinal.
-- +goose StatementBegin
CREATE FUNCTION pawl.claim_job(p_ns smallint, p_claim bigint, p_ordinal int, OUT job_id bigint, OUT attempt smallint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
  SELECT u.first + p_ordinal - u.before, u.attempt INTO claim_job.job_id, claim_job.attempt
    FROM (
      SELECT t.first, t.n, t.attempt, sum(t.n) OVER (ROWS UNBOUNDED PRECEDING) - t.n AS before
      FROM pawl.claim c CROSS JOIN LATERAL ROWS FROM (unnest(c.job_ids), unnest(c.job_counts), unnest(c.attempts)) t(first, n, attempt)
      WHERE c.ns = p_ns AND c.id = p_claim) u
    WHERE p_ordinal >= u.before AND p_ordinal < u.before + u.n;
END $$;
-- +goose StatementEnd

-- Ends attempts of any outcome, in one transaction: parallel arrays, one element an attempt, claims in ascending order. Gives for each the outcome that
-- counted (see attempt_end), '' where the attempt was lost to this session. delays_ms negative or NULL: by the job's backoff (at once for the rest). Sagas of which steps ended go on with it:
-- queues got jobs thereby, and the sagas ended, by their keys, have ended. Successes are written together.
-- +goose StatementBegin
CREATE FUNCTION pawl.settle(p_ns smallint, p_session bigint, p_claims bigint[], p_nonces bigint[], p_ordinals int[], p_outcomes pawl.outcome[],
  p_details json[], p_delays_ms bigint[], p_results json[], OUT counted text[], OUT queues text[], OUT ended text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  a         record;
  v_outcome pawl.outcome;
  v_claim   bigint;
  v_seen    int4multirange;    -- of the claim at hand: ordinals that have a receipt, or get one here
  v_good    int4multirange;    -- those of them that succeed here
  r_claims  bigint[] := '{}';  -- receipts of successes
  r_jobs    int4multirange[] := '{}';
  o_jobs    bigint[] := '{}';  -- results
  o_values  json[] := '{}';
  s_sagas   bigint[] := '{}';  -- steps of sagas whose job is over
  s_steps   smallint[] := '{}';
  s_units   int[] := '{}';
  s_whats   pawl.outcome[] := '{}';
  s_details json[] := '{}';
BEGIN
  PERFORM pawl.require_read_committed();
  FOR i IN 1 .. cardinality(p_claims) LOOP
    IF p_claims[i] IS DISTINCT FROM p_claims[i - 1] THEN
      PERFORM pg_advisory_xact_lock(pawl.claim_key(p_claims[i]));
    END IF;
  END LOOP;
  -- From here on each statement sees every receipt that was committed under the locks.
  FOR a IN
    -- The claims that the session has while it lives, each with its jobs one by one: some have hundreds of runs; and what has a receipt, at its first row. By primary key: + 0 and OFFSET 0 keep the planner from seeking all claims of the session instead.
    WITH c AS MATERIALIZED (
      SELECT n.claim_id, n.nonce, n.i,
        coalesce((SELECT range_agg(u) FROM pawl.receipt r CROSS JOIN LATERAL unnest(r.jobs) u WHERE r.ns = p_ns AND r.claim_id = n.claim_id), '{}') AS seen,
        ARRAY(SELECT u.first + o FROM ROWS FROM (unnest(x.job_ids), unnest(x.job_counts)) WITH ORDINALITY u(first, n, run), generate_series(0, u.n - 1) o ORDER BY u.run, o) AS job_ids,
        ARRAY(SELECT u.attempt FROM ROWS FROM (unnest(x.attempts), unnest(x.job_counts)) WITH ORDINALITY u(attempt, n, run), generate_series(0, u.n - 1) o ORDER BY u.run, o) AS attempts
      FROM (SELECT t.claim_id, t.nonce, min(t.i) AS i FROM ROWS FROM (unnest(p_claims), unnest(p_nonces)) WITH ORDINALITY t(claim_id, nonce, i) GROUP BY 1, 2) n
      CROSS JOIN LATERAL (
        SELECT y.job_ids, y.job_counts, y.attempts FROM pawl.claim y
        WHERE y.ns = p_ns AND y.id = n.claim_id AND y.nonce = n.nonce AND y.session_id + 0 = p_session OFFSET 0) x
      WHERE EXISTS (SELECT FROM pawl.session s WHERE s.ns = p_ns AND s.id = p_session AND s.ended_at IS NULL))
    SELECT t.i, t.claim_id, t.ordinal, k.job_id, k.attempt, CASE WHEN t.i = k.i THEN k.seen END AS seen, j.saga_id, j.saga_step, j.saga_unit
    FROM ROWS FROM (unnest(p_claims), unnest(p_nonces), unnest(p_ordinals)) WITH ORDINALITY t(claim_id, nonce, ordinal, i)
    LEFT JOIN LATERAL (SELECT c.i, c.seen, c.job_ids[t.ordinal + 1] AS job_id, c.attempts[t.ordinal + 1] AS attempt FROM c
      WHERE c.claim_id = t.claim_id AND c.nonce = t.nonce) k ON true  -- no job where the claim has no such ordinal
    LEFT JOIN LATERAL (SELECT b.saga_id, b.saga_step, b.saga_unit FROM pawl.job b WHERE b.ns = p_ns AND b.id = k.job_id OFFSET 0) j ON true
    ORDER BY t.i
  LOOP
    IF a.claim_id IS DISTINCT FROM v_claim THEN
      IF NOT isempty(v_good) THEN
        r_claims := r_claims || v_claim;
        r_jobs := r_jobs || v_good;
      END IF;
      v_claim := a.claim_id;
      v_good := '{}';
    END IF;
    IF a.seen IS NOT NULL THEN
      v_seen := a.seen;
    END IF;
    IF a.job_id IS NULL OR v_seen @> a.ordinal THEN
      counted[a.i] := '';
      CONTINUE;
    END IF;
    v_seen := v_seen + int4multirange(int4range(a.ordinal, a.ordinal + 1));
    v_outcome := p_outcomes[a.i];
    IF v_outcome = 'succeeded' THEN
      v_good := v_good + int4multirange(int4range(a.ordinal, a.ordinal + 1));
      IF a.saga_id IS NULL AND p_results[a.i] IS NOT NULL THEN
        o_jobs := o_jobs || a.job_id;
        o_values := o_values || p_results[a.i];
      END IF;
    ELSE
      v_outcome := pawl.attempt_end(p_ns, a.claim_id, a.ordinal, a.job_id, a.attempt, v_outcome, p_details[a.i],
        CASE WHEN p_delays_ms[a.i] >= 0 THEN make_interval(secs => p_delays_ms[a.i] / 1000.0) END, NULL);
    END IF;
    counted[a.i] := v_outcome;
    IF a.saga_id IS NOT NULL AND v_outcome IN ('succeeded', 'discarded', 'cancelled') THEN
      s_sagas := s_sagas || a.saga_id;
      s_steps := s_steps || a.saga_step;
      s_units := s_units || a.saga_unit;
      s_whats := s_whats || v_outcome;
      s_details := s_details || CASE WHEN v_outcome = 'succeeded' THEN p_results[a.i] ELSE p_details[a.i] END;
    END IF;
  END LOOP;
  IF NOT isempty(v_good) THEN
    r_claims := r_claims || v_claim;
    r_jobs := r_jobs || v_good;
  END IF;
  INSERT INTO pawl.receipt (claim_id, at, ns, outcome, jobs)
    SELECT t.claim_id, clock_timestamp(), p_ns, 'succeeded', t.jobs FROM ROWS FROM (unnest(r_claims), unnest(r_jobs)) t(claim_id, jobs);
  IF o_jobs <> '{}' THEN
    INSERT INTO pawl.result (ns, job_id, at, value)
      SELECT p_ns, t.job_id, clock_timestamp(), t.value FROM ROWS FROM (unnest(o_jobs), unnest(o_values)) t(job_id, value)
      ON CONFLICT (ns, job_id) DO UPDATE SET at = excluded.at, value = excluded.value;  -- of a job that succeeded before and was retried
  END IF;
  queues := '{}';
  ended := '{}';
  IF s_sagas <> '{}' THEN
    SELECT e.queues, e.ended INTO queues, ended FROM pawl.saga_endings(p_ns, s_sagas, s_steps, s_units, s_whats, s_details) e;
  END IF;
END $$;
-- +goose StatementEnd

-- Whether the session still holds the attempt. Asked in a statement after the one that locked the claim.
-- +goose StatementBegin
CREATE FUNCTION pawl.claim_held(p_ns smallint, p_session bigint, p_claim bigint, p_nonce bigint, p_ordinal int) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
  RETURN EXISTS (SELECT FROM pawl.session s WHERE s.ns = p_ns AND s.id = p_session AND s.ended_at IS NULL)
    AND EXISTS (SELECT FROM pawl.claim c WHERE c.ns = p_ns AND c.id = p_claim AND c.session_id + 0 = p_session AND c.nonce = p_nonce
      AND p_ordinal >= 0 AND p_ordinal < c.jobs)
    AND NOT EXISTS (SELECT FROM pawl.receipt r WHERE r.ns = p_ns AND r.claim_id = p_claim AND r.jobs @> p_ordinal);
END $$;
-- +goose StatementEnd

-- Ends an attempt as succeeded in the transaction of its handler, just before COMMIT; raises PW001 when the attempt was lost, so that nothing of it commits.
-- Attempts of one claim share its lock (they would commit one by one else); the lock of the ordinal keeps two endings of one attempt apart. queues, ended: as settle.
-- +goose StatementBegin
CREATE FUNCTION pawl.finish_tx(p_ns smallint, p_session bigint, p_claim bigint, p_nonce bigint, p_ordinal int, p_result json, OUT queues text[], OUT ended text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  a record;
BEGIN
  PERFORM pawl.require_read_committed();
  PERFORM pg_advisory_xact_lock_shared(pawl.claim_key(p_claim));
  PERFORM pg_advisory_xact_lock(hashint8extended(p_claim, 7004 + p_ordinal));
  IF NOT pawl.claim_held(p_ns, p_session, p_claim, p_nonce, p_ordinal) THEN
    RAISE EXCEPTION 'pawl: the attempt was lost: its session ended or it was ended before' USING ERRCODE = 'PW001';
  END IF;
  SELECT k.job_id, k.attempt, j.saga_id, j.saga_step, j.saga_unit INTO a
    FROM pawl.claim_job(p_ns, p_claim, p_ordinal) k LEFT JOIN LATERAL (SELECT b.saga_id, b.saga_step, b.saga_unit FROM pawl.job b WHERE b.ns = p_ns AND b.id = k.job_id OFFSET 0) j ON true;
  PERFORM pawl.attempt_end(p_ns, p_claim, p_ordinal, a.job_id, a.attempt, 'succeeded', NULL, NULL, CASE WHEN a.saga_id IS NULL THEN p_result END);
  queues := '{}';
  ended := '{}';
  IF a.saga_id IS NOT NULL THEN
    SELECT e.queues, e.ended INTO queues, ended
      FROM pawl.saga_endings(p_ns, ARRAY[a.saga_id], ARRAY[a.saga_step], ARRAY[a.saga_unit], ARRAY['succeeded'::pawl.outcome], ARRAY[coalesce(p_result, 'null')]) e;
  END IF;
END $$;
-- +goose StatementEnd

-- Gives back what claims, in ascending order, have open, as lost or returned. Gives the number of jobs. Sagas hear of it last, all together: their locks come behind those of claims.
-- +goose StatementBegin
CREATE FUNCTION pawl.claim_give_back(p_ns smallint, p_claims bigint[], p_outcome pawl.outcome, p_detail json) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_claim   bigint;
  v_open    int4multirange;
  v_outcome pawl.outcome;
  a         record;
  v_n       int := 0;
  s_sagas   bigint[] := '{}';
  s_steps   smallint[] := '{}';
  s_units   int[] := '{}';
  s_whats   pawl.outcome[] := '{}';
BEGIN
  PERFORM pawl.require_read_committed();
  FOREACH v_claim IN ARRAY p_claims LOOP
    PERFORM pg_advisory_xact_lock(pawl.claim_key(v_claim));
    v_open := pawl.claim_open(p_ns, v_claim);
    FOR a IN
      SELECT o AS ordinal, u.first + o - u.before AS job_id, u.attempt, j.saga_id, j.saga_step, j.saga_unit
      FROM (
        SELECT t.first, t.n, t.attempt, (sum(t.n) OVER (ROWS UNBOUNDED PRECEDING) - t.n)::int AS before
        FROM pawl.claim c CROSS JOIN LATERAL ROWS FROM (unnest(c.job_ids), unnest(c.job_counts), unnest(c.attempts)) t(first, n, attempt)
        WHERE c.ns = p_ns AND c.id = v_claim) u
      CROSS JOIN LATERAL generate_series(u.before, u.before + u.n - 1) o
      LEFT JOIN LATERAL (SELECT b.saga_id, b.saga_step, b.saga_unit FROM pawl.job b WHERE b.ns = p_ns AND b.id = u.first + o - u.before OFFSET 0) j ON true
      WHERE v_open @> o
    LOOP
      v_outcome := pawl.attempt_end(p_ns, v_claim, a.ordinal, a.job_id, a.attempt, p_outcome, p_detail, NULL, NULL);
      v_n := v_n + 1;
      IF a.saga_id IS NOT NULL AND v_outcome IN ('discarded', 'cancelled') THEN
        s_sagas := s_sagas || a.saga_id;
        s_steps := s_steps || a.saga_step;
        s_units := s_units || a.saga_unit;
        s_whats := s_whats || v_outcome;
      END IF;
    END LOOP;
  END LOOP;
  IF s_sagas <> '{}' THEN
    PERFORM pawl.saga_endings(p_ns, s_sagas, s_steps, s_units, s_whats, array_fill(p_detail, ARRAY[cardinality(s_sagas)]));
  END IF;
  RETURN v_n;
END $$;
-- +goose StatementEnd

-- Gives up the claims that a session took under a nonce, if any: what a client calls when the reply to a claim was lost. The line's lock comes first,
-- so that a claim still in flight under that nonce is waited for.
-- +goose StatementBegin
CREATE FUNCTION pawl.abandon(p_ns smallint, p_session bigint, p_nonce bigint, p_queue int, p_priority smallint) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET lock_timeout = '10s' AS $$
DECLARE
  v_clear bigint;
  v_open  bigint[];
BEGIN
  PERFORM pg_advisory_xact_lock(pawl.line_key(p_ns, p_queue, p_priority));
  SELECT s.claims_clear, s.claims_open INTO v_clear, v_open FROM pawl.session s WHERE s.ns = p_ns AND s.id = p_session;
  RETURN pawl.claim_give_back(p_ns, ARRAY(
    (SELECT o FROM unnest(v_open) o WHERE EXISTS (SELECT FROM pawl.claim c WHERE c.ns = p_ns AND c.id = o AND c.nonce = p_nonce))
    UNION ALL
    (SELECT c.id FROM pawl.claim c WHERE -c.ns = -p_ns AND c.session_id = p_session AND -c.id <= -v_clear AND c.id >= v_clear AND c.nonce = p_nonce)
    ORDER BY 1), 'returned', NULL);
END $$;
-- +goose StatementEnd

-- The heartbeat: prolongs the session and tells the process what it cannot know. alive false: it has ended. stray_*: claims older than a third of the
-- ttl with jobs open that are not among p_held (a reply was lost). cancel_*: attempts that were asked to cancel.
-- +goose StatementBegin
CREATE FUNCTION pawl.session_renew(p_ns smallint, p_session bigint, p_held bigint[],
  OUT alive boolean, OUT stray_claims bigint[], OUT cancel_claims bigint[], OUT cancel_ordinals int[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET lock_timeout = '5s' AS $$
DECLARE
  c_claims_max CONSTANT int := 10000;  -- looked at in one beat; the next goes on from there
  v_clear bigint;
  v_open  bigint[];
  n_open  bigint[] := '{}';
  v_ttl   interval;
  v_seen  int := 0;
  v_last  bigint;
  v_quiet boolean;
  c       record;
BEGIN
  SELECT s.claims_clear, s.claims_open, s.ttl INTO v_clear, v_open, v_ttl FROM pawl.session s WHERE s.ns = p_ns AND s.id = p_session AND s.ended_at IS NULL;
  alive := FOUND;
  IF NOT alive THEN
    RETURN;
  END IF;
  stray_claims := '{}';
  FOR c IN
    (SELECT k.id, k.claimed_at FROM unnest(v_open) o
      CROSS JOIN LATERAL (SELECT x.id, x.claimed_at FROM pawl.claim x WHERE x.ns = p_ns AND x.id = o OFFSET 0) k)
    UNION ALL
    (SELECT x.id, x.claimed_at FROM pawl.claim x WHERE -x.ns = -p_ns AND x.session_id = p_session AND -x.id <= -v_clear AND x.id >= v_clear
      ORDER BY -x.id DESC LIMIT c_claims_max)
  LOOP
    IF c.id >= v_clear THEN
      v_seen := v_seen + 1;
      v_last := c.id;
    END IF;
    IF c.id = ANY (p_held) THEN
      n_open := n_open || c.id;
    ELSIF NOT isempty(pawl.claim_open(p_ns, c.id)) THEN
      n_open := n_open || c.id;
      IF c.claimed_at < clock_timestamp() - v_ttl / 3 THEN
        stray_claims := stray_claims || c.id;
      END IF;
    END IF;
  END LOOP;
  -- Claims of several lines commit out of the order of their ids: claims_clear moves only while none is in flight and when none has come in below it
  -- since the search. The lock is taken after the search: a claim that waits for it holds its line. It moves to the last one seen, not behind it, since
  -- a sequence's value may be handed out again after a crash.
  IF v_last > v_clear THEN
    v_quiet := pg_try_advisory_xact_lock(pawl.session_key(p_session));
    IF v_quiet AND v_seen = (SELECT count(*) FROM pawl.claim x
        WHERE -x.ns = -p_ns AND x.session_id = p_session AND -x.id <= -v_clear AND -x.id >= -v_last AND x.id >= v_clear AND x.id <= v_last) THEN
      v_clear := v_last;
    END IF;
  END IF;
  UPDATE pawl.session s SET expires_at = clock_timestamp() + s.ttl, claims_clear = v_clear, claims_open = ARRAY(SELECT o FROM unnest(n_open) o WHERE o < v_clear)
    WHERE s.ns = p_ns AND s.id = p_session AND s.ended_at IS NULL;
  alive := FOUND;
  SELECT array_agg(x.claim_id), array_agg(x.ordinal) INTO cancel_claims, cancel_ordinals
    FROM pawl.cancellation x WHERE x.ns = p_ns AND x.session_id = p_session AND x.claim_id >= least(v_clear, n_open[1]);
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pawl.session_renew, pawl.abandon, pawl.claim_give_back, pawl.finish_tx, pawl.claim_held, pawl.settle, pawl.claim_job, pawl.attempt_end,
  pawl.job_again, pawl.backoff, pawl.finish, pawl.claim_open,
  pawl.require_read_committed;
