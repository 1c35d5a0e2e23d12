-- +goose Up

-- Locks of claiming and ending, advisory so that no row is ever touched again. A line's is held from before its position is read to the
-- commit that moves it; a claim's from before its receipts are read to the commit that adds some.
CREATE FUNCTION pawl.line_key(p_ns smallint, p_queue int, p_priority smallint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashint8extended(($2::bigint << 20) + ($3::bigint << 16) + $1, 7001)';
CREATE FUNCTION pawl.claim_key(p_claim bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashint8extended($1, 7003)';

-- Takes a line's lock for a claim. Who finds it taken sleeps, 1 to 4 ms the first time and 25 to 100 ms from then on, before it queues up: woken one by
-- one, waiters spend more time on being woken than on claiming (a lock convoy), and who claims again at once has all it needs at hand.
-- +goose StatementBegin
CREATE FUNCTION pawl.line_lock(p_ns smallint, p_queue int, p_priority smallint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  c_tries_max CONSTANT int := 30;
  v_key bigint := pawl.line_key(p_ns, p_queue, p_priority);
BEGIN
  FOR i IN 1 .. c_tries_max LOOP
    IF pg_try_advisory_xact_lock(v_key) THEN
      RETURN;
    END IF;
    PERFORM pg_sleep((0.25 + 0.75 * random()) * CASE WHEN i = 1 THEN 0.004 ELSE 0.1 END);
  END LOOP;
  PERFORM pg_advisory_xact_lock(v_key);
END $$;
-- +goose StatementEnd

-- Where a line stands: its newest claim's position, or its base while there is none in its epoch. Of the one form that the planner puts
-- in place of its call, which takes half as long: SQL, STABLE, a set, no settings of its own. BEGIN ATOMIC binds its names here and now.
-- +goose StatementBegin
CREATE FUNCTION pawl.line_position(p_ns smallint, p_queue int, p_priority smallint)
RETURNS TABLE (epoch smallint, cluster bigint, c_epoch smallint, c_xid xid8, c_id bigint, c_taken int, late_xid xid8[], late_id bigint[], late_taken int[])
LANGUAGE sql STABLE BEGIN ATOMIC
  SELECT l.epoch, l.cluster,
      coalesce(c.cursor_epoch, l.base_epoch), coalesce(c.cursor_xid, l.base_xid),
      coalesce(c.cursor_id, l.base_id), coalesce(c.cursor_taken, l.base_taken),
      CASE WHEN c.id IS NULL THEN l.base_late_xid ELSE c.late_xid END,
      CASE WHEN c.id IS NULL THEN l.base_late_id ELSE c.late_id END,
      CASE WHEN c.id IS NULL THEN l.base_late_taken ELSE c.late_taken END
    FROM pawl.line l
    LEFT JOIN LATERAL (
      SELECT x.id, x.cursor_epoch, x.cursor_xid, x.cursor_id, x.cursor_taken, x.late_xid, x.late_id, x.late_taken FROM pawl.claim x
      WHERE -x.ns = -p_ns AND x.queue_id = p_queue AND x.priority = p_priority AND x.epoch = l.epoch AND x.id >= l.claim_floor
      ORDER BY -x.id LIMIT 1) c ON true
    WHERE l.ns = p_ns AND l.queue_id = p_queue AND l.priority = p_priority;
END;
-- +goose StatementEnd

-- Up to p_limit jobs of one line and epoch beyond a position and not above p_xid_to, of transactions visible in p_snap (NULL: all settled),
-- as runs in line order, and the position after them. A row may be a whole batch, so a few rows are tried before p_limit of them.
-- +goose StatementBegin
CREATE FUNCTION pawl.line_take(p_ns smallint, p_queue int, p_priority smallint, p_epoch smallint,
  p_xid xid8, p_id bigint, p_taken int, p_xid_to xid8, p_snap pg_snapshot, p_limit int,
  OUT jobs int, OUT job_ids bigint[], OUT job_counts int[], OUT attempts smallint[], OUT last_xid xid8, OUT last_id bigint, OUT last_taken int)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_rows int := least(p_limit, 16);
  v_read int;
  v_xids xid8[];
  v_keys bigint[];
  v_end  int;
BEGIN
  -- Mostly the row at which the line stands has all that is asked for.
  SELECT p_limit, ARRAY[p_id + p_taken], ARRAY[p_limit], ARRAY[r.attempt], p_xid, p_id, p_taken + p_limit
    INTO jobs, job_ids, job_counts, line_take.attempts, last_xid, last_id, last_taken
    FROM pawl.ready r
    WHERE r.ns = p_ns AND r.queue_id = p_queue AND r.priority = p_priority AND r.epoch = p_epoch AND r.xid = p_xid AND r.job_id = p_id
      AND r.jobs - p_taken >= p_limit AND (p_snap IS NULL OR pg_visible_in_snapshot(r.xid, p_snap));
  IF FOUND THEN
    RETURN;
  END IF;
  LOOP
    SELECT count(*), sum(f.n), array_agg(f.first), array_agg(f.n), array_agg(f.attempt), array_agg(f.xid), array_agg(f.job_id)
      INTO v_read, jobs, job_ids, job_counts, line_take.attempts, v_xids, v_keys
      FROM (
        SELECT w.xid, w.job_id, w.attempt, w.first, least(w.n, p_limit - (w.upto - w.n))::int AS n
        FROM (
          SELECT t.*, sum(t.n) OVER (ROWS UNBOUNDED PRECEDING) AS upto
          FROM (
            -- In two scans: one from (p_xid, p_id) on would, from PostgreSQL 18 on, begin at the first row of p_xid.
            (SELECT r.xid, r.job_id, r.attempt,
              CASE WHEN r.job_id = p_id THEN r.job_id + p_taken ELSE r.job_id END AS first,
              CASE WHEN r.job_id = p_id THEN r.jobs - p_taken ELSE r.jobs END AS n
            FROM pawl.ready r
            WHERE r.ns = p_ns AND r.queue_id = p_queue AND r.priority = p_priority AND r.epoch = p_epoch
              AND r.xid = p_xid AND r.job_id >= p_id AND (r.job_id > p_id OR r.jobs > p_taken)
              AND (p_snap IS NULL OR pg_visible_in_snapshot(r.xid, p_snap))
            ORDER BY r.job_id
            LIMIT v_rows)
            UNION ALL
            (SELECT r.xid, r.job_id, r.attempt, r.job_id, r.jobs
            FROM pawl.ready r
            WHERE r.ns = p_ns AND r.queue_id = p_queue AND r.priority = p_priority AND r.epoch = p_epoch
              AND r.xid > p_xid AND r.xid <= p_xid_to
              AND (p_snap IS NULL OR pg_visible_in_snapshot(r.xid, p_snap))
            ORDER BY r.xid, r.job_id
            LIMIT v_rows)
            LIMIT v_rows) t) w
        WHERE w.upto - w.n < p_limit) f;
    EXIT WHEN v_read < v_rows OR jobs >= p_limit OR v_rows >= p_limit;
    v_rows := p_limit;
  END LOOP;
  jobs := coalesce(jobs, 0);
  IF jobs > 0 THEN
    v_end := cardinality(job_ids);
    last_xid := v_xids[v_end];
    last_id := v_keys[v_end];
    last_taken := job_ids[v_end] + job_counts[v_end] - last_id;
  END IF;
END $$;
-- +goose StatementEnd

-- Claims up to p_limit jobs (at most 10,000) from the front of one line, in the order (epoch, xid, job id), those of transactions that committed late first. The claim
-- is (claim_id, p_nonce, p_session); jobs counts what it holds (0: all were cancelled, claim again); claim_id NULL says that there is nothing.
-- Must be a READ COMMITTED transaction of its own (PW005): inside one that has written, the cursor would move past its own xid, which no
-- snapshot lists as running. Commits asynchronously: a claim lost in a crash is only taken again, and a durable receipt has a durable claim.
-- Raises PW004 when the session has ended, PW003 when the line was last used in another cluster.
-- +goose StatementBegin
CREATE FUNCTION pawl.claim(p_ns smallint, p_session bigint, p_nonce bigint, p_queue int, p_priority smallint, p_limit int,
  OUT claim_id bigint, OUT jobs int)
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET lock_timeout = '10s' AS $$
DECLARE
  l         record;
  t         record;
  v_planned boolean := current_setting('pawl.planned', true) IS NOT DISTINCT FROM 'on';
  v_paused  timestamptz;
  v_alive   boolean;
  v_snap    pg_snapshot;
  v_n       int := 0;
  v_from    xid8;      -- the lowest xid taken
  v_ids     bigint[] := '{}';
  v_counts  int[] := '{}';
  v_tries   smallint[] := '{}';
  n_xid     xid8[];    -- the stragglers left after this claim
  n_id      bigint[];
  n_taken   int[];
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' OR pg_current_xact_id_if_assigned() IS NOT NULL THEN
    RAISE EXCEPTION 'pawl: claim must be a READ COMMITTED transaction of its own' USING ERRCODE = 'PW005',
      HINT = 'Set default_transaction_isolation of the role or database to ''read committed''.';
  END IF;
  PERFORM set_config('synchronous_commit', 'off', true);
  LOOP
    -- The first claim of a backend goes round twice: first without the lock, only to make the plans, which takes longer than a hundred claims.
    IF v_planned THEN
      PERFORM pawl.line_lock(p_ns, p_queue, p_priority);
      PERFORM pg_advisory_xact_lock_shared(pawl.session_key(p_session));
      -- From here on each statement sees all that was committed under these locks.
    END IF;
    SELECT q.paused_at, s.ended_at IS NULL INTO v_paused, v_alive
      FROM pawl.session s JOIN pawl.queue q ON q.ns = p_ns AND q.id = p_queue WHERE s.ns = p_ns AND s.id = p_session;
    SELECT p.* INTO l FROM pawl.line_position(p_ns, p_queue, p_priority) p;
    EXIT WHEN v_planned;
    PERFORM FROM pawl.line_take(p_ns, p_queue, p_priority, 0::smallint, '0', 0, 0, '0', NULL, 1);
    PERFORM set_config('pawl.planned', 'on', false);
    v_planned := true;
  END LOOP;
  IF v_alive IS NOT TRUE THEN
    RAISE EXCEPTION 'pawl: session % has ended', p_session USING ERRCODE = 'PW004';
  END IF;
  IF l.epoch IS NULL OR v_paused IS NOT NULL OR p_limit < 1 THEN
    RETURN;
  END IF;
  IF NOT pawl.is_home(l.cluster) THEN
    PERFORM pawl.raise_moved(q.name) FROM pawl.queue q WHERE q.ns = p_ns AND q.id = p_queue;
  END IF;
  p_limit := least(p_limit, 10000);
  v_snap := pg_current_snapshot();
  IF l.c_epoch = l.epoch AND l.c_xid >= pg_snapshot_xmax(v_snap) THEN
    -- A position in the future: a copy came from a cluster with this one's identity (cloned on disk) and more xids. Its jobs would be skipped.
    PERFORM pawl.raise_moved(q.name) FROM pawl.queue q WHERE q.ns = p_ns AND q.id = p_queue;
  END IF;

  FOR i IN 1 .. coalesce(cardinality(l.late_xid), 0) LOOP
    IF v_n < p_limit AND (l.c_epoch < l.epoch OR pg_visible_in_snapshot(l.late_xid[i], v_snap)) THEN
      SELECT x.* INTO t FROM pawl.line_take(p_ns, p_queue, p_priority, l.c_epoch,
        l.late_xid[i], l.late_id[i], l.late_taken[i], l.late_xid[i], NULL, p_limit - v_n) x;
      IF t.jobs > 0 THEN
        v_ids := v_ids || t.job_ids;
        v_counts := v_counts || t.job_counts;
        v_tries := v_tries || t.attempts;
        v_n := v_n + t.jobs;
        v_from := least(v_from, l.late_xid[i]);
      END IF;
      CONTINUE WHEN v_n < p_limit;  -- taken whole
      l.late_id[i] := coalesce(t.last_id, l.late_id[i]);
      l.late_taken[i] := coalesce(t.last_taken, l.late_taken[i]);
    END IF;
    n_xid := n_xid || l.late_xid[i];
    n_id := n_id || l.late_id[i];
    n_taken := n_taken || l.late_taken[i];
  END LOOP;

  FOR e IN l.c_epoch .. l.epoch LOOP  -- more than one only after a rebase
    EXIT WHEN v_n >= p_limit;
    IF e > l.c_epoch THEN
      l.c_epoch := e;
      l.c_xid := '0';
      l.c_id := 0;
      l.c_taken := 0;
    END IF;
    SELECT x.* INTO t FROM pawl.line_take(p_ns, p_queue, p_priority, e::smallint, l.c_xid, l.c_id, l.c_taken,
      CASE WHEN e = l.epoch THEN pg_snapshot_xmax(v_snap) ELSE '18446744073709551615' END, CASE WHEN e = l.epoch THEN v_snap END, p_limit - v_n) x;
    CONTINUE WHEN t.jobs = 0;
    IF e = l.epoch THEN
      SELECT n_xid || array_agg(x), n_id || array_agg(0::bigint), n_taken || array_agg(0) INTO n_xid, n_id, n_taken
        FROM pg_snapshot_xip(v_snap) x WHERE x > l.c_xid AND x < t.last_xid;
    END IF;
    v_from := least(v_from, l.c_xid);
    v_ids := v_ids || t.job_ids;
    v_counts := v_counts || t.job_counts;
    v_tries := v_tries || t.attempts;
    v_n := v_n + t.jobs;
    l.c_xid := t.last_xid;
    l.c_id := t.last_id;
    l.c_taken := t.last_taken;
  END LOOP;
  IF v_n = 0 THEN
    RETURN;
  END IF;

  IF EXISTS (SELECT FROM pawl.cancellation x WHERE -x.ns = -p_ns AND x.queue_id = p_queue AND x.priority = p_priority AND x.xid >= v_from) THEN
    SELECT p.jobs, p.job_ids, p.job_counts, p.attempts INTO v_n, v_ids, v_counts, v_tries FROM pawl.claim_prune(p_ns, v_ids, v_counts, v_tries) p;
  END IF;
  INSERT INTO pawl.claim (nonce, session_id, claimed_at, cursor_xid, cursor_id, cursor_taken, jobs, queue_id, ns, priority, epoch, cursor_epoch,
      late_xid, late_id, late_taken, job_ids, job_counts, attempts)
    VALUES (p_nonce, p_session, clock_timestamp(), l.c_xid, l.c_id, l.c_taken, v_n, p_queue, p_ns, p_priority, l.epoch, l.c_epoch,
      n_xid, n_id, n_taken, v_ids, v_counts, v_tries)
    RETURNING id INTO claim_id;
  jobs := v_n;
END $$;
-- +goose StatementEnd

-- The runs without the jobs whose attempt was cancelled.
-- +goose StatementBegin
CREATE FUNCTION pawl.claim_prune(p_ns smallint, p_ids bigint[], p_counts int[], p_attempts smallint[],
  OUT jobs int, OUT job_ids bigint[], OUT job_counts int[], OUT attempts smallint[])
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
  SELECT coalesce(sum(g.n), 0), coalesce(array_agg(g.first ORDER BY g.run, g.first), '{}'), coalesce(array_agg(g.n ORDER BY g.run, g.first), '{}'),
      coalesce(array_agg(g.attempt ORDER BY g.run, g.first), '{}')
    INTO jobs, job_ids, job_counts, claim_prune.attempts
    FROM (
      SELECT k.run, k.attempt, min(k.job_id) AS first, count(*)::int AS n
      FROM (
        SELECT r.run, r.attempt, j AS job_id, j - row_number() OVER (PARTITION BY r.run ORDER BY j) AS island
        FROM ROWS FROM (unnest(p_ids), unnest(p_counts), unnest(p_attempts)) WITH ORDINALITY r(first, n, attempt, run)
        CROSS JOIN LATERAL generate_series(r.first, r.first + r.n - 1) j
        WHERE NOT EXISTS (SELECT FROM pawl.cancellation c WHERE c.ns = p_ns AND c.job_id = j AND c.attempt = r.attempt)) k
      GROUP BY k.run, k.attempt, k.island) g;
END $$;
-- +goose StatementEnd

-- The bodies of a claim's jobs p_from … p_to - 1 (ordinals). None if the claim was lost in a crash and its id is another's now. In a statement of its own, so that a client that stops reading holds no lock.
-- +goose StatementBegin
CREATE FUNCTION pawl.claim_bodies(p_ns smallint, p_claim bigint, p_nonce bigint, p_from int, p_to int)
RETURNS TABLE (ordinal int, id bigint, attempt smallint, max_attempts smallint, created_at timestamptz, timeout_ms int, kind text, args json, headers json)
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
  RETURN QUERY
    SELECT (r.before + (j.id - r.first))::int, j.id, r.attempt, j.max_attempts, j.created_at, j.timeout_ms, j.kind, j.args, j.headers
    FROM (
      SELECT u.first, u.n, u.attempt, sum(u.n) OVER (ROWS UNBOUNDED PRECEDING) - u.n AS before
      FROM pawl.claim c
      CROSS JOIN LATERAL ROWS FROM (unnest(c.job_ids), unnest(c.job_counts), unnest(c.attempts)) u(first, n, attempt)
      WHERE c.ns = p_ns AND c.id = p_claim AND c.nonce = p_nonce) r
    -- Run by run, also where statistics are of a time when there were few jobs: OFFSET 0 keeps the planner from reading all jobs once for all runs instead.
    CROSS JOIN LATERAL (
      SELECT y.* FROM pawl.job y
      WHERE y.ns = p_ns AND y.id >= r.first + greatest(p_from - r.before, 0) AND y.id < r.first + least(p_to - r.before, r.n) OFFSET 0) j
    WHERE r.before < p_to AND r.before + r.n > p_from;
END $$;
-- +goose StatementEnd

-- The lines of these queues that may have work, highest priority first. Takes no lock and writes nothing. queue_id, priority: parallel arrays.
-- +goose StatementBegin
CREATE FUNCTION pawl.look(p_ns smallint, p_queues int[], OUT queue_ids int[], OUT priorities smallint[])
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  k      record;
  l      record;
  v_snap pg_snapshot := pg_current_snapshot();
  v_any  boolean;
BEGIN
  queue_ids := '{}';
  priorities := '{}';
  FOR k IN SELECT x.queue_id, x.priority FROM pawl.line x
      CROSS JOIN LATERAL (SELECT y.paused_at FROM pawl.queue y WHERE y.ns = p_ns AND y.id = x.queue_id OFFSET 0) q
      WHERE x.ns = p_ns AND x.queue_id = ANY (p_queues) AND q.paused_at IS NULL ORDER BY x.priority, x.queue_id LOOP
    SELECT p.* INTO l FROM pawl.line_position(p_ns, k.queue_id, k.priority) p;
    v_any := EXISTS (SELECT FROM pawl.ready r
        WHERE r.ns = p_ns AND r.queue_id = k.queue_id AND r.priority = k.priority AND r.epoch = l.c_epoch
          AND r.xid > l.c_xid AND (l.c_epoch < l.epoch OR r.xid < pg_snapshot_xmax(v_snap)))
      OR EXISTS (SELECT FROM pawl.ready r
        WHERE r.ns = p_ns AND r.queue_id = k.queue_id AND r.priority = k.priority AND r.epoch = l.c_epoch
          AND r.xid = l.c_xid AND r.job_id >= l.c_id AND (r.job_id > l.c_id OR r.jobs > l.c_taken));
    IF NOT v_any AND l.c_epoch < l.epoch THEN
      v_any := EXISTS (SELECT FROM pawl.ready r
        WHERE r.ns = p_ns AND r.queue_id = k.queue_id AND r.priority = k.priority AND r.epoch > l.c_epoch AND r.epoch <= l.epoch);
    END IF;
    FOR i IN 1 .. coalesce(cardinality(l.late_xid), 0) LOOP
      EXIT WHEN v_any;
      v_any := (l.c_epoch < l.epoch OR pg_visible_in_snapshot(l.late_xid[i], v_snap))
        AND EXISTS (SELECT FROM pawl.ready r
          WHERE r.ns = p_ns AND r.queue_id = k.queue_id AND r.priority = k.priority AND r.epoch = l.c_epoch
            AND r.xid = l.late_xid[i] AND r.job_id >= l.late_id[i] AND (r.job_id > l.late_id[i] OR r.jobs > l.late_taken[i]));
    END LOOP;
    IF v_any THEN
      queue_ids := queue_ids || k.queue_id;
      priorities := priorities || k.priority;
    END IF;
  END LOOP;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pawl.look, pawl.claim_bodies, pawl.claim_prune, pawl.claim, pawl.line_take, pawl.line_position, pawl.line_lock,
  pawl.claim_key, pawl.line_key;
