-- +goose Up

-- Takes a dedupe key for p_job. Gives the id of the unfinished job that has it (NULL: p_job has it now). The key's row is locked
-- first and its job looked at in a later statement.
-- +goose StatementBegin
CREATE FUNCTION pawl.dedupe_take(p_ns smallint, p_kind text, p_key text, p_window interval, p_job bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
  v_until timestamptz := clock_timestamp() + p_window;
  v_job   bigint;
  v_old   timestamptz;
BEGIN
  FOR i IN 1 .. 5 LOOP
    INSERT INTO pawl.dedupe (ns, kind, key, job_id, until) VALUES (p_ns, p_kind, p_key, p_job, v_until) ON CONFLICT DO NOTHING;
    IF FOUND THEN
      RETURN NULL;
    END IF;
    SELECT d.job_id, d.until INTO v_job, v_old FROM pawl.dedupe d WHERE d.ns = p_ns AND d.kind = p_kind AND d.key = p_key FOR UPDATE;
    CONTINUE WHEN NOT FOUND;  -- removed by its sweep meanwhile
    IF v_old > clock_timestamp() OR v_old IS NULL AND NOT pawl.job_finished(p_ns, v_job) THEN
      RETURN v_job;
    END IF;
    UPDATE pawl.dedupe d SET job_id = p_job, until = v_until WHERE d.ns = p_ns AND d.kind = p_kind AND d.key = p_key;
    RETURN NULL;
  END LOOP;
  RAISE EXCEPTION 'pawl: dedupe key % of kind % changes hands too fast', p_key, p_kind USING ERRCODE = '40001', HINT = 'Try again.';
END $$;
-- +goose StatementEnd

-- Whether a job may be like this. Judged here and not by constraints of the tables: those are compiled at each statement, which takes as long
-- as a third of the insert. Postgres puts it in place of its call.
-- +goose StatementBegin
CREATE FUNCTION pawl.is_job(p_kind text, p_args_bytes int, p_max_attempts smallint, p_timeout_ms int, p_backoff_ms int, p_backoff_ms_max int) RETURNS boolean
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
  SELECT (length(p_kind) BETWEEN 1 AND 128 AND p_args_bytes >= 0 AND p_max_attempts BETWEEN 1 AND 1000) IS TRUE
    AND (p_timeout_ms < 1 OR p_backoff_ms < 0 OR p_backoff_ms_max < coalesce(p_backoff_ms, 0)) IS NOT TRUE;
END;
-- +goose StatementEnd

-- Says what is_job has found.
-- +goose StatementBegin
CREATE FUNCTION pawl.raise_arguments(p_kind text, p_args_bytes int, p_max_attempts smallint, p_timeout_ms int, p_backoff_ms int, p_backoff_ms_max int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_what text := CASE
    WHEN p_kind IS NULL OR length(p_kind) NOT BETWEEN 1 AND 128 THEN format('a kind has 1 to 128 characters, not %s', coalesce(length(p_kind), 0))
    WHEN p_args_bytes IS NULL THEN 'args are JSON, not NULL'
    WHEN p_max_attempts IS NULL OR p_max_attempts NOT BETWEEN 1 AND 1000 THEN format('max_attempts %s is outside 1 to 1000', p_max_attempts)
    WHEN p_timeout_ms < 1 THEN format('a timeout of %s ms is less than 1', p_timeout_ms)
    ELSE format('a backoff from %s to %s ms: neither may be below 0, nor the second below the first', coalesce(p_backoff_ms::text, 'the default'),
      coalesce(p_backoff_ms_max::text, 'the default'))
  END;
BEGIN
  RAISE EXCEPTION 'pawl: %', v_what USING ERRCODE = '22023';
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION pawl.raise_payload(p_bytes int, p_bytes_max int, p_queue text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE EXCEPTION 'pawl: args of % bytes exceed the % allowed in queue %', p_bytes, p_bytes_max, p_queue
    USING ERRCODE = 'PW002', HINT = 'Store the payload elsewhere and enqueue its key, or raise payload_bytes_max of the queue.';
END $$;
-- +goose StatementEnd

-- Enqueues one job in the caller's transaction and gives its id. Runs at p_run_at, at once if that is NULL or past. Raises PW002 when args
-- exceed the queue's payload_bytes_max, PW003 when the database was moved to another cluster, 22023 on a bad argument.
-- +goose StatementBegin
CREATE FUNCTION pawl.enqueue(
  p_ns smallint, p_queue text, p_kind text, p_args json,
  p_priority smallint DEFAULT 2, p_run_at timestamptz DEFAULT NULL, p_max_attempts smallint DEFAULT 25, p_timeout_ms int DEFAULT NULL,
  p_backoff_ms int DEFAULT NULL, p_backoff_ms_max int DEFAULT NULL, p_headers json DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_bytes int := octet_length(p_args::text);
  v_queue int;
  v_epoch smallint;
  v_home  boolean;
  v_max   int;
  v_id    bigint;
  v_xid   xid8;
BEGIN
  IF NOT pawl.is_job(p_kind, v_bytes, p_max_attempts, p_timeout_ms, p_backoff_ms, p_backoff_ms_max) THEN
    PERFORM pawl.raise_arguments(p_kind, v_bytes, p_max_attempts, p_timeout_ms, p_backoff_ms, p_backoff_ms_max);
  END IF;
  SELECT l.queue_id, l.epoch, pawl.is_home(l.cluster), l.payload_bytes_max, nextval('pawl.job_id') << 10,
      CASE WHEN p_run_at > clock_timestamp() THEN NULL ELSE pg_current_xact_id() END
    INTO v_queue, v_epoch, v_home, v_max, v_id, v_xid FROM pawl.line_of(p_ns, p_queue, p_priority) l;
  IF NOT FOUND THEN
    PERFORM pawl.line_create(p_ns, p_queue, p_priority);
    RETURN pawl.enqueue(p_ns, p_queue, p_kind, p_args, p_priority, p_run_at, p_max_attempts, p_timeout_ms, p_backoff_ms, p_backoff_ms_max, p_headers);
  END IF;
  IF NOT v_home THEN
    PERFORM pawl.raise_moved(p_queue);
  END IF;
  IF v_bytes > v_max THEN
    PERFORM pawl.raise_payload(v_bytes, v_max, p_queue);
  END IF;
  IF v_xid IS NULL THEN
    INSERT INTO pawl.scheduled (run_at, job_id, queue_id, ns, priority, attempt) VALUES (p_run_at, v_id, v_queue, p_ns, p_priority, 1);
  ELSE
    INSERT INTO pawl.ready (xid, job_id, jobs, queue_id, ns, priority, epoch, attempt, again)
      VALUES (v_xid, v_id, 1, v_queue, p_ns, p_priority, v_epoch, 1, false);
  END IF;
  INSERT INTO pawl.job (id, created_at, xid, queue_id, ns, priority, epoch, max_attempts, timeout_ms, backoff_ms, backoff_ms_max, kind,
      enqueued_by, args, headers)
    VALUES (v_id, now(), v_xid, v_queue, p_ns, p_priority, v_epoch, p_max_attempts, p_timeout_ms, p_backoff_ms, p_backoff_ms_max, p_kind,
      coalesce(nullif(current_setting('application_name'), ''), session_user), p_args, p_headers);
  RETURN v_id;
END $$;
-- +goose StatementEnd

-- Enqueues up to 1,000 jobs of one kind and policy in the caller's transaction. Without keys their ids are first_id and the following;
-- with p_dedupe_keys (one for each of p_args, NULL for none) ids and duplicates tell, in the order of p_args.
-- +goose StatementBegin
CREATE FUNCTION pawl.enqueue_many(
  p_ns smallint, p_queue text, p_kind text, p_args json[],
  p_priority smallint DEFAULT 2, p_run_at timestamptz DEFAULT NULL, p_max_attempts smallint DEFAULT 25, p_timeout_ms int DEFAULT NULL,
  p_backoff_ms int DEFAULT NULL, p_backoff_ms_max int DEFAULT NULL, p_headers json DEFAULT NULL,
  p_dedupe_keys text[] DEFAULT NULL, p_dedupe_window interval DEFAULT NULL,
  OUT first_id bigint, OUT ids bigint[], OUT duplicates boolean[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_n       int := cardinality(p_args);
  v_by      text := coalesce(nullif(current_setting('application_name'), ''), session_user);
  v_now     timestamptz := now();
  v_queue   int;
  v_epoch   smallint;
  v_home    boolean;
  v_max     int;
  v_longest int;
  v_xid     xid8;
  v_other   bigint;
  v_key     text;
  v_first   bigint;
  k         record;
BEGIN
  IF v_n NOT BETWEEN 1 AND 1000 THEN
    RAISE EXCEPTION 'pawl: a batch has 1 to 1000 jobs, not %', v_n USING ERRCODE = '22023';
  END IF;
  IF cardinality(p_dedupe_keys) <> v_n THEN
    RAISE EXCEPTION 'pawl: % dedupe keys for % jobs', cardinality(p_dedupe_keys), v_n USING ERRCODE = '22023';
  END IF;
  SELECT max(octet_length(a::text)) INTO v_longest FROM unnest(p_args) a HAVING bool_and(a IS NOT NULL);
  IF NOT pawl.is_job(p_kind, v_longest, p_max_attempts, p_timeout_ms, p_backoff_ms, p_backoff_ms_max) THEN
    PERFORM pawl.raise_arguments(p_kind, v_longest, p_max_attempts, p_timeout_ms, p_backoff_ms, p_backoff_ms_max);
  END IF;
  SELECT l.queue_id, l.epoch, pawl.is_home(l.cluster), l.payload_bytes_max INTO v_queue, v_epoch, v_home, v_max FROM pawl.line_of(p_ns, p_queue, p_priority) l;
  IF NOT FOUND THEN
    PERFORM pawl.line_create(p_ns, p_queue, p_priority);
    SELECT l.queue_id, l.epoch, true, l.payload_bytes_max INTO v_queue, v_epoch, v_home, v_max FROM pawl.line_of(p_ns, p_queue, p_priority) l;
  END IF;
  IF NOT v_home THEN
    PERFORM pawl.raise_moved(p_queue);
  END IF;
  IF v_longest > v_max THEN
    PERFORM pawl.raise_payload(v_longest, v_max, p_queue);
  END IF;
  first_id := nextval('pawl.job_id') << 10;
  IF p_dedupe_keys IS NOT NULL THEN
    ids := ARRAY(SELECT first_id + i FROM generate_series(0, v_n - 1) i);
    duplicates := array_fill(false, ARRAY[v_n]);
    FOR k IN SELECT t.key, t.i::int AS i FROM unnest(p_dedupe_keys) WITH ORDINALITY t(key, i) WHERE t.key IS NOT NULL ORDER BY t.key, t.i LOOP
      IF k.key = v_key THEN
        v_other := v_first;  -- twice in this batch
      ELSE
        v_other := pawl.dedupe_take(p_ns, p_kind, k.key, p_dedupe_window, ids[k.i]);
        v_key := k.key;
        v_first := coalesce(v_other, ids[k.i]);
      END IF;
      IF v_other IS NOT NULL THEN
        ids[k.i] := v_other;
        duplicates[k.i] := true;
      END IF;
    END LOOP;
  END IF;
  IF p_run_at > clock_timestamp() THEN
    INSERT INTO pawl.scheduled (run_at, job_id, queue_id, ns, priority, attempt)
      SELECT p_run_at, first_id + i, v_queue, p_ns, p_priority, 1 FROM generate_series(0, v_n - 1) i
      WHERE duplicates IS NULL OR NOT duplicates[i + 1];
  ELSE
    v_xid := pg_current_xact_id();
    IF duplicates IS NULL THEN
      INSERT INTO pawl.ready (xid, job_id, jobs, queue_id, ns, priority, epoch, attempt, again)
        VALUES (v_xid, first_id, v_n, v_queue, p_ns, p_priority, v_epoch, 1, false);
    ELSE
      INSERT INTO pawl.ready (xid, job_id, jobs, queue_id, ns, priority, epoch, attempt, again)
        SELECT v_xid, first_id + i, 1, v_queue, p_ns, p_priority, v_epoch, 1, false FROM generate_series(0, v_n - 1) i
        WHERE NOT duplicates[i + 1];
    END IF;
  END IF;
  INSERT INTO pawl.job (id, created_at, xid, queue_id, ns, priority, epoch, max_attempts, timeout_ms, backoff_ms, backoff_ms_max, kind,
      enqueued_by, args, headers, dedupe_key)
    SELECT first_id + t.i - 1, v_now, v_xid, v_queue, p_ns, p_priority, v_epoch, p_max_attempts, p_timeout_ms, p_backoff_ms, p_backoff_ms_max, p_kind,
      v_by, t.a, p_headers, p_dedupe_keys[t.i]
    FROM unnest(p_args) WITH ORDINALITY t(a, i)
    WHERE duplicates IS NULL OR NOT duplicates[t.i];
END $$;
-- +goose StatementEnd

-- Enqueues one job unless an unfinished one of its kind (or one within p_dedupe_window) has the key: then id is that one's, and duplicate is true.
-- For the rest as pawl.enqueue.
-- +goose StatementBegin
CREATE FUNCTION pawl.enqueue_unique(
  p_ns smallint, p_queue text, p_kind text, p_args json, p_dedupe_key text, p_dedupe_window interval DEFAULT NULL,
  p_priority smallint DEFAULT 2, p_run_at timestamptz DEFAULT NULL, p_max_attempts smallint DEFAULT 25, p_timeout_ms int DEFAULT NULL,
  p_backoff_ms int DEFAULT NULL, p_backoff_ms_max int DEFAULT NULL, p_headers json DEFAULT NULL,
  OUT id bigint, OUT duplicate boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF p_dedupe_key IS NULL THEN
    RAISE EXCEPTION 'pawl: a dedupe key is text, not NULL' USING ERRCODE = '22023', HINT = 'Without a key there is pawl.enqueue.';
  END IF;
  SELECT e.ids[1], e.duplicates[1] INTO id, duplicate
    FROM pawl.enqueue_many(p_ns, p_queue, p_kind, ARRAY[p_args], p_priority, p_run_at, p_max_attempts, p_timeout_ms, p_backoff_ms, p_backoff_ms_max, p_headers,
      ARRAY[p_dedupe_key], p_dedupe_window) e;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pawl.enqueue_unique, pawl.enqueue_many, pawl.enqueue, pawl.raise_payload, pawl.raise_arguments, pawl.is_job, pawl.dedupe_take;
