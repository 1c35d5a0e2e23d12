-- +goose Up

-- What was done of the branches that somebody else's saga or global transaction calls here, in the transactions that did it. gid: the saga or global transaction; op: what was asked for.
-- reason: on whose behalf the row stands: its own; that of a compensation that found nothing to compensate and bars what comes late; or of a refusal, whose result tells the reason and which
-- attempt was refused. Updated only by what comes of a branch after a refusal; the sweep removes it. Without a foreign key to namespace, as in idempotency_key.
CREATE TABLE pawl.barrier (
  ns     smallint    NOT NULL,
  gid    text        NOT NULL,
  branch text        NOT NULL,
  op     text        NOT NULL,
  reason text        NOT NULL,
  result json,
  at     timestamptz NOT NULL,
  PRIMARY KEY (ns, gid, branch, op),
  CONSTRAINT barrier_length CHECK (octet_length(gid) BETWEEN 1 AND 1024 AND octet_length(branch) BETWEEN 1 AND 255),
  CONSTRAINT barrier_op CHECK (op IN ('action', 'undo', 'try', 'confirm', 'cancel')),
  CONSTRAINT barrier_reason CHECK (reason = op OR (op, reason) IN (('action', 'undo'), ('try', 'cancel'), ('action', 'refused'), ('try', 'refused')))
);
CREATE INDEX barrier_at ON pawl.barrier ((-ns), at);  -- by -ns, as in idempotency_key

-- Up to where the sweep has removed what is old, as idempotency_floor.
CREATE TABLE pawl.barrier_floor (
  ns       smallint    PRIMARY KEY REFERENCES pawl.namespace,
  at       timestamptz NOT NULL,
  whole_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- What the transaction at work on a branch holds, whatever it does of it.
CREATE FUNCTION pawl.barrier_lock_key(p_ns smallint, p_gid text, p_branch text) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashtextextended($3, pg_catalog.hashtextextended($2, (7016::bigint << 16) + $1))';

-- What an op compensates; NULL: nothing.
CREATE FUNCTION pawl.barrier_origin(p_op text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT CASE $1 WHEN ''undo'' THEN ''action'' WHEN ''cancel'' THEN ''try'' END';

-- Takes a branch for the caller's transaction, and looks in a statement after the one that locked. what: run, and then leave; null: run nothing, and leave; duplicate: it was done, with
-- result; refused: so it was, with result, by this attempt (p_job, p_attempt) of the caller's or a later one; late: its compensation came first. Waits for up to p_wait_ms for another
-- transaction at work on the branch, unless lock_timeout is shorter, which is as before afterwards; then 55P03. p_idle_ms bounds how long the transaction may stand idle, see
-- idempotency_bound; 0 leaves that to the caller. began: to be handed to barrier_leave.
-- +goose StatementBegin
CREATE FUNCTION pawl.barrier_enter(p_ns smallint, p_gid text, p_branch text, p_op text, p_job bigint, p_attempt int, p_wait_ms int, p_idle_ms int, OUT what text, OUT result json, OUT began timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_key    bigint := pawl.barrier_lock_key(p_ns, p_gid, p_branch);
  v_origin text := pawl.barrier_origin(p_op);
  v_before text;
  v_reason text;
BEGIN
  PERFORM pawl.require_read_committed();
  IF p_gid IS NULL OR octet_length(p_gid) NOT BETWEEN 1 AND 1024 OR p_branch IS NULL OR octet_length(p_branch) NOT BETWEEN 1 AND 255 THEN
    RAISE EXCEPTION 'pawl: the id of a saga or global transaction has 1 to 1024 bytes, not %, and a branch 1 to 255, not %', coalesce(octet_length(p_gid), 0),
      coalesce(octet_length(p_branch), 0) USING ERRCODE = '22023';
  END IF;
  IF NOT EXISTS (SELECT FROM pawl.namespace n WHERE n.ns = p_ns) THEN
    RAISE EXCEPTION 'pawl: namespace % does not exist', p_ns USING ERRCODE = '22023', HINT = 'SELECT pawl.namespace_create(name) makes one.';
  END IF;
  IF p_idle_ms > 0 THEN
    PERFORM pawl.idempotency_bound(p_idle_ms);
  END IF;
  IF NOT pg_try_advisory_xact_lock(v_key) THEN
    v_before := current_setting('lock_timeout');
    IF v_before = '0' OR v_before::interval > make_interval(secs => p_wait_ms / 1000.0) THEN
      PERFORM set_config('lock_timeout', p_wait_ms::text, true);
    END IF;
    PERFORM pg_advisory_xact_lock(v_key);
    PERFORM set_config('lock_timeout', v_before, true);
  END IF;
  began := now();
  -- A new statement: it sees whatever was committed by one that was waited for.
  SELECT b.reason, b.result INTO v_reason, result FROM pawl.barrier b WHERE b.ns = p_ns AND b.gid = p_gid AND b.branch = p_branch AND b.op = p_op;
  what := CASE
    WHEN v_reason = p_op THEN 'duplicate'
    WHEN v_reason = 'refused' AND (p_job, p_attempt) > ((result->>'job')::bigint, (result->>'attempt')::int) THEN 'run'
    WHEN v_reason = 'refused' THEN 'refused'
    WHEN v_reason IS NOT NULL THEN 'late'
    WHEN v_origin IS NULL THEN 'run'
    -- By itself: a row that stands for a compensation says that there is nothing to compensate.
    WHEN EXISTS (SELECT FROM pawl.barrier b WHERE b.ns = p_ns AND b.gid = p_gid AND b.branch = p_branch AND b.op = v_origin AND b.reason = v_origin) THEN 'run'
    ELSE 'null' END;
END $$;
-- +goose StatementEnd

-- Records what was done of a branch, in the transaction that took it, or that it was refused. A compensation also bars what it compensates, unless that was done before. Its commit is not asynchronous: the caller, elsewhere, goes on
-- as if it outlived a crash.
-- +goose StatementBegin
CREATE FUNCTION pawl.barrier_leave(p_ns smallint, p_gid text, p_branch text, p_op text, p_refused boolean, p_result json, p_began timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_origin text := pawl.barrier_origin(p_op);
  v_at     timestamptz := clock_timestamp();
BEGIN
  PERFORM pawl.idempotency_intact(p_began);
  IF current_setting('synchronous_commit') = 'off' THEN
    PERFORM set_config('synchronous_commit', 'local', true);
  END IF;
  IF v_origin IS NOT NULL THEN
    INSERT INTO pawl.barrier AS b (ns, gid, branch, op, reason, at) VALUES (p_ns, p_gid, p_branch, v_origin, p_op, v_at)
      ON CONFLICT (ns, gid, branch, op) DO UPDATE SET reason = EXCLUDED.reason, result = NULL, at = EXCLUDED.at WHERE b.reason = 'refused';
  END IF;
  INSERT INTO pawl.barrier AS b (ns, gid, branch, op, reason, result, at)
    VALUES (p_ns, p_gid, p_branch, p_op, CASE WHEN p_refused THEN 'refused' ELSE p_op END, p_result, v_at)
    ON CONFLICT (ns, gid, branch, op) DO UPDATE SET reason = EXCLUDED.reason, result = EXCLUDED.result, at = EXCLUDED.at WHERE b.reason = 'refused';
  IF NOT FOUND THEN
    RAISE EXCEPTION 'pawl: % of branch % was recorded within itself', p_op, p_branch USING ERRCODE = '23505';
  END IF;
END $$;
-- +goose StatementEnd

-- The sweep of barriers: removes up to p_limit rows that are older than p_keep, the oldest first. Once an hour it begins from the front, for what was committed after its time. NULL: another
-- node is at it. Without bitmap scans: a batch would read and sort
-- all that is old.
-- +goose StatementBegin
CREATE FUNCTION pawl.sweep_barrier(p_ns smallint, p_keep interval, p_limit int) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_custom_plan SET lock_timeout = '2s' AS $$
DECLARE
  f     pawl.barrier_floor;
  v_now timestamptz := clock_timestamp();
  v_old timestamptz := v_now - p_keep;
  v_at  timestamptz;
  v_did bigint;
BEGIN
  PERFORM pawl.require_read_committed();
  IF NOT pg_try_advisory_xact_lock(pawl.sweep_key(p_ns, 'barrier')) THEN
    RETURN NULL;
  END IF;
  SELECT x.* INTO f FROM pawl.barrier_floor x WHERE x.ns = p_ns;
  IF NOT FOUND THEN
    INSERT INTO pawl.barrier_floor VALUES (p_ns, '-infinity', v_now) RETURNING * INTO f;
  ELSIF f.whole_at < v_now - interval '1 hour' THEN
    f := ROW(p_ns, '-infinity', v_now);
  END IF;
  WITH gone AS (
    DELETE FROM pawl.barrier b USING (
        SELECT x.gid, x.branch, x.op FROM pawl.barrier x WHERE -x.ns = -p_ns AND x.at >= f.at AND x.at < v_old
        ORDER BY x.at LIMIT p_limit FOR UPDATE SKIP LOCKED) o
      WHERE b.ns = p_ns AND b.gid = o.gid AND b.branch = o.branch AND b.op = o.op
      RETURNING b.at)
  SELECT count(*), max(g.at) INTO v_did, v_at FROM gone g;
  UPDATE pawl.barrier_floor x SET at = CASE WHEN v_did < p_limit THEN v_old ELSE v_at END, whole_at = f.whole_at WHERE x.ns = p_ns;
  RETURN v_did;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pawl.sweep_barrier, pawl.barrier_leave, pawl.barrier_enter, pawl.barrier_origin, pawl.barrier_lock_key;
DROP TABLE pawl.barrier_floor, pawl.barrier;
