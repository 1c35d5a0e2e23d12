-- +goose Up

-- The args of a step's job; p_more: further members, each behind a comma. Postgres puts it in place of its call.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_args(p_key text, p_saga bigint, p_step text, p_version int, p_input json, p_more text DEFAULT '') RETURNS json LANGUAGE sql STABLE BEGIN ATOMIC
  SELECT ('{"saga":' || to_json(p_key)::text || ',"id":"' || p_saga || '","step":"' || p_step || '","version":' || p_version || ',"input":' || p_input::text || p_more || '}')::json;
END;
-- +goose StatementEnd

-- What a service has registered: the steps of sagas of this name and version, for good. Arrays have one element a step, each behind those it needs; sets of steps are
-- bit masks, the first step's bit being 1. below: the steps that need it, directly or not. kinds and queues are of the step's job, undo_* of its compensation's (NULL: nothing to undo).
CREATE TABLE pawl.saga_definition (
  ns               smallint    NOT NULL REFERENCES pawl.namespace,
  id               int         GENERATED ALWAYS AS IDENTITY,
  name             text        NOT NULL,
  version          int         NOT NULL,
  digest           text        NOT NULL,
  registered_at    timestamptz NOT NULL,
  registered_by    text        NOT NULL,
  deadline_ms      bigint,
  spec             json        NOT NULL,
  steps            text[]      NOT NULL,
  types            text[]      NOT NULL,
  needs            bigint[]    NOT NULL,
  below            bigint[]    NOT NULL,
  all_steps        bigint      NOT NULL,
  pivot            bigint      NOT NULL,
  sure             bigint      NOT NULL,  -- the pivot and the steps behind it: these must not be undone
  undoable         bigint      NOT NULL,
  begins_alone     boolean     NOT NULL,  -- its first step is the only one that needs no other, and has a job
  waits_ms         bigint[]    NOT NULL,
  children         int[]       NOT NULL,  -- the definition of a child saga
  kinds            text[]      NOT NULL,
  queues           text[]      NOT NULL,
  queue_ids        int[]       NOT NULL,
  priorities       smallint[]  NOT NULL,
  max_attempts     smallint[]  NOT NULL,
  timeouts_ms      int[]       NOT NULL,
  backoffs_ms      int[]       NOT NULL,
  backoffs_ms_max  int[]       NOT NULL,
  undo_queues          text[]     NOT NULL,
  undo_queue_ids       int[]      NOT NULL,
  undo_max_attempts    smallint[] NOT NULL,
  undo_timeouts_ms     int[]      NOT NULL,
  undo_backoffs_ms     int[]      NOT NULL,
  undo_backoffs_ms_max int[]      NOT NULL,
  PRIMARY KEY (ns, id),
  UNIQUE (ns, name, version),
  CONSTRAINT saga_definition_steps CHECK (cardinality(steps) BETWEEN 1 AND 62)
);

CREATE SEQUENCE pawl.saga_id;

-- A saga, never updated: what it does is told by its events. root_id: the saga at the top of which it is a part (itself, if none); all of one root advance one after another.
CREATE TABLE pawl.saga (
  ns            smallint    NOT NULL,
  id            bigint      NOT NULL,
  root_id       bigint      NOT NULL,
  parent_id     bigint,
  parent_step   smallint,
  definition_id int         NOT NULL,
  started_at    timestamptz NOT NULL,
  deadline_at   timestamptz,
  key           text        NOT NULL,
  started_by    text        NOT NULL,
  input         json        NOT NULL,
  headers       json,
  PRIMARY KEY (ns, id)
);
CREATE UNIQUE INDEX saga_key ON pawl.saga ((-ns), key);  -- by -ns, as in idempotency_key
CREATE INDEX saga_parent ON pawl.saga (ns, parent_id, id) WHERE parent_id IS NOT NULL;

CREATE TYPE pawl.saga_state AS ENUM ('running', 'compensating', 'stuck', 'succeeded', 'compensated', 'forced');

-- Whether a saga in this state has ended. Postgres puts it in place of its call.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_over(p_state pawl.saga_state) RETURNS boolean LANGUAGE sql IMMUTABLE BEGIN ATOMIC
  SELECT p_state IN ('succeeded', 'compensated', 'forced');
END;
-- +goose StatementEnd

CREATE TYPE pawl.saga_what AS ENUM (
  'started',
  'succeeded',       -- a step; detail: its output
  'refused',         -- a step: nothing was done
  'exhausted',       -- a step: its attempts are used up, and nobody knows whether it was done
  'withdrawn',       -- a step whose job had never begun
  'expanded',        -- a step has its units, or its child
  'units',           -- units of a step are over; detail: over, which units (a multirange), outputs by number, failed
  'undone',          -- a step's compensation
  'undo_exhausted',  -- a step's compensation, which goes on only by an operator
  'cancelled', 'expired',
  'retried', 'skipped', 'failed', 'forced',  -- by an operator
  'signalled'        -- a signal came before its turn; detail: its value
);

-- What happened to a saga, and where it has stood since: the newest event is the state. (No constraints, which are compiled at each statement: see is_job.) Sets of steps are masks as in the definition.
-- A step that is lined and neither ok, refused nor unknown is waited for; so is a compensation that is undoing and not undone. stuck: waits for an operator.
CREATE TABLE pawl.saga_event (
  ns         smallint         NOT NULL,
  saga_id    bigint           NOT NULL,
  seq        int              NOT NULL,
  at         timestamptz      NOT NULL,
  what       pawl.saga_what   NOT NULL,
  state      pawl.saga_state  NOT NULL,
  step       smallint         NOT NULL,  -- 0: the saga's own
  backward   boolean          NOT NULL,  -- it compensates, or will when those that run have answered
  lined      bigint           NOT NULL,
  ok         bigint           NOT NULL,
  refused    bigint           NOT NULL,
  unknown    bigint           NOT NULL,
  expanded   bigint           NOT NULL,
  signalled  bigint           NOT NULL,
  undoing    bigint           NOT NULL,
  undone     bigint           NOT NULL,
  stuck      bigint           NOT NULL,
  units      int,                        -- of the step, in all,
  units_over int,                        -- and those that have ended,
  units_bad  int,                        -- and those of them that did not succeed
  jobs       bigint[],                   -- that it enqueued,
  job_steps  smallint[],                 -- and for which steps, below 0 for compensations; of units, the first of each run of up to 1,024
  detail     json,
  actor      text,
  PRIMARY KEY (ns, saga_id, seq)
);
CREATE INDEX saga_event_stuck ON pawl.saga_event (ns, saga_id) WHERE state = 'stuck';

-- What is to be done for a saga at a time: step 0 its deadline, above 0 a timer or the end of a wait for a signal, -1 to withdraw jobs that wait in line.
CREATE TABLE pawl.saga_timer (
  ns      smallint    NOT NULL,
  saga_id bigint      NOT NULL,
  step    smallint    NOT NULL,
  at      timestamptz NOT NULL,
  seen    bigint      NOT NULL DEFAULT 0,  -- of -1: units whose jobs have ids up to here have been looked at
  PRIMARY KEY (ns, saga_id, step)
);
CREATE INDEX saga_timer_due ON pawl.saga_timer ((-ns), at, saga_id, step);

-- The semantic locks of sagas that have not ended.
CREATE TABLE pawl.saga_hold (
  ns      smallint    NOT NULL,
  name    text        NOT NULL,
  saga_id bigint      NOT NULL,
  held_at timestamptz NOT NULL,
  PRIMARY KEY (ns, name),
  CONSTRAINT saga_hold_name CHECK (length(name) BETWEEN 1 AND 512)
);
CREATE INDEX saga_hold_saga ON pawl.saga_hold ((-ns), saga_id);

-- The lock under which sagas of one root advance. Taken behind the locks of lines and claims, in the order of ids.
CREATE FUNCTION pawl.saga_lock_key(p_root bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT pg_catalog.hashint8extended($1, 7010)';

-- +goose StatementBegin
CREATE FUNCTION pawl.saga_now(p_ns smallint, p_saga bigint) RETURNS SETOF pawl.saga_event LANGUAGE sql STABLE BEGIN ATOMIC
  SELECT x.* FROM pawl.saga_event x WHERE x.ns = p_ns AND x.saga_id = p_saga ORDER BY x.seq DESC LIMIT 1;
END;
-- +goose StatementEnd

-- The saga that a step is, or was last, having begun anew since; NULL: none.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_child(p_ns smallint, p_saga bigint, p_step smallint) RETURNS pawl.saga
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  c pawl.saga;
BEGIN
  SELECT y.* INTO c FROM pawl.saga y WHERE y.ns = p_ns AND y.parent_id = p_saga AND y.parent_step = p_step ORDER BY y.id DESC LIMIT 1;
  RETURN c;
END $$;
-- +goose StatementEnd

-- Registers a definition, checked by the client, in the caller's transaction. id NULL: the name and version are there with another digest, and theirs is its spec. A spec that no client of ours writes raises 22023.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_register(p_ns smallint, p_name text, p_version int, p_digest text, p_spec json, OUT id int, OUT theirs json)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  d        pawl.saga_definition;
  v_digest text;
  v_n      int := json_array_length(p_spec->'steps');
  v_bit    bigint := 1;
  x        record;
  u        json;
BEGIN
  SELECT y.id, y.digest, y.spec INTO id, v_digest, theirs FROM pawl.saga_definition y WHERE y.ns = p_ns AND y.name = p_name AND y.version = p_version;
  IF FOUND THEN
    IF v_digest = p_digest THEN
      theirs := NULL;
    ELSE
      id := NULL;
    END IF;
    RETURN;
  END IF;
  d.pivot := 0;
  d.undoable := 0;
  d.sure := 0;
  d.needs := '{}';
  d.below := array_fill(0::bigint, ARRAY[v_n]);
  FOR x IN SELECT s.*, o.i::int FROM json_array_elements(p_spec->'steps') WITH ORDINALITY o(e, i)
      CROSS JOIN LATERAL json_to_record(o.e) s(name text, kind text, queue text, priority smallint, after text[], pivot boolean, max_attempts smallint, timeout_ms int, backoff_ms int, backoff_ms_max int,
        undo json, wait_ms bigint, child json) ORDER BY o.i LOOP
    IF x.name !~ '^[A-Za-z0-9._-]{1,64}$' THEN
      RAISE EXCEPTION 'pawl: saga %: a step is named by 1 to 64 letters, digits, dots, hyphens and underscores, not %', p_name, x.name USING ERRCODE = '22023';
    END IF;
    d.steps[x.i] := x.name;
    d.types[x.i] := x.kind;
    d.needs[x.i] := 0;
    FOR k IN 1 .. coalesce(cardinality(x.after), 0) LOOP
      IF array_position(d.steps[: x.i - 1], x.after[k]) IS NULL THEN
        RAISE EXCEPTION 'pawl: saga %, step %: it comes after %, which is not before it', p_name, x.name, x.after[k] USING ERRCODE = '22023';
      END IF;
      d.needs[x.i] := d.needs[x.i] | (1::bigint << array_position(d.steps, x.after[k]) - 1);
    END LOOP;
    IF x.kind IN ('step', 'each', 'child') THEN
      d.queue_ids[x.i] := (SELECT l.queue_id FROM pawl.line_create(p_ns, x.queue, x.priority) l);
      d.kinds[x.i] := format('saga:%s@%s/%s', p_name, p_version, x.name);
    ELSIF x.kind IN ('timer', 'signal') THEN
      d.kinds[x.i] := NULL;
    ELSE
      RAISE EXCEPTION 'pawl: saga %, step %: unknown kind %', p_name, x.name, x.kind USING ERRCODE = '22023';
    END IF;
    d.queues[x.i] := x.queue;
    d.priorities[x.i] := x.priority;
    d.max_attempts[x.i] := x.max_attempts;
    d.timeouts_ms[x.i] := x.timeout_ms;
    d.backoffs_ms[x.i] := x.backoff_ms;
    d.backoffs_ms_max[x.i] := x.backoff_ms_max;
    d.waits_ms[x.i] := x.wait_ms;
    IF x.kind = 'child' THEN
      d.children[x.i] := (SELECT y.id FROM pawl.saga_definition y WHERE y.ns = p_ns AND y.name = x.child->>'name' AND y.version = (x.child->>'version')::int);
      IF d.children[x.i] IS NULL THEN
        RAISE EXCEPTION 'pawl: saga %, step %: its child %, version %, is not registered', p_name, x.name, x.child->>'name', x.child->>'version' USING ERRCODE = 'PW021', HINT = 'Register the child first.';
      END IF;
    END IF;
    IF x.pivot THEN
      d.pivot := v_bit;
    END IF;
    u := x.undo;
    IF u IS NOT NULL THEN
      d.undoable := d.undoable | v_bit;
      d.undo_queue_ids[x.i] := (SELECT l.queue_id FROM pawl.line_create(p_ns, u->>'queue', x.priority) l);
      d.undo_queues[x.i] := u->>'queue';
      d.undo_max_attempts[x.i] := (u->>'max_attempts')::smallint;
      d.undo_timeouts_ms[x.i] := (u->>'timeout_ms')::int;
      d.undo_backoffs_ms[x.i] := (u->>'backoff_ms')::int;
      d.undo_backoffs_ms_max[x.i] := (u->>'backoff_ms_max')::int;
    END IF;
    v_bit := v_bit << 1;
  END LOOP;
  FOR i IN REVERSE v_n .. 1 LOOP
    FOR k IN i + 1 .. v_n LOOP
      IF d.needs[k] & (1::bigint << i - 1) <> 0 THEN
        d.below[i] := d.below[i] | (1::bigint << k - 1) | d.below[k];
      END IF;
    END LOOP;
    IF d.pivot = 1::bigint << i - 1 THEN
      d.sure := d.pivot | d.below[i];
    END IF;
  END LOOP;
  -- Arrays that were never set, or only in part, are filled up.
  INSERT INTO pawl.saga_definition (ns, name, version, digest, registered_at, registered_by, deadline_ms, spec, steps, types, needs, below, all_steps, pivot, sure, undoable, begins_alone, waits_ms, children,
      kinds, queues, queue_ids, priorities, max_attempts, timeouts_ms, backoffs_ms, backoffs_ms_max,
      undo_queues, undo_queue_ids, undo_max_attempts, undo_timeouts_ms, undo_backoffs_ms, undo_backoffs_ms_max)
    VALUES (p_ns, p_name, p_version, p_digest, now(), coalesce(nullif(current_setting('application_name'), ''), session_user), (p_spec->>'deadline_ms')::bigint, p_spec,
      d.steps, d.types, d.needs, d.below, v_bit - 1, d.pivot, d.sure, d.undoable,
      (SELECT count(*) FROM unnest(d.needs) n WHERE n = 0) = 1 AND d.kinds[1] IS NOT NULL, coalesce(d.waits_ms, '{}'), coalesce(d.children, '{}'),
      coalesce(d.kinds, '{}'), coalesce(d.queues, '{}'), coalesce(d.queue_ids, '{}'), coalesce(d.priorities, '{}'), coalesce(d.max_attempts, '{}'), coalesce(d.timeouts_ms, '{}'),
      coalesce(d.backoffs_ms, '{}'), coalesce(d.backoffs_ms_max, '{}'),
      coalesce(d.undo_queues, '{}'), coalesce(d.undo_queue_ids, '{}'), coalesce(d.undo_max_attempts, '{}'), coalesce(d.undo_timeouts_ms, '{}'), coalesce(d.undo_backoffs_ms, '{}'), coalesce(d.undo_backoffs_ms_max, '{}'))
    ON CONFLICT DO NOTHING RETURNING saga_definition.id INTO id;
  IF NOT FOUND THEN
    SELECT r.id, r.theirs INTO id, theirs FROM pawl.saga_register(p_ns, p_name, p_version, p_digest, p_spec) r;
  END IF;
END $$;
-- +goose StatementEnd

-- Tells of a saga that needs an operator, in the outbox: topic pawl.saga, type saga.stuck.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_alert(p_ns smallint, p_key text, p_name text, p_step text, p_what pawl.saga_what, p_detail json) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  PERFORM pawl.publish(p_ns, 'pawl.saga', left(p_key, 256), 'saga.stuck', json_build_object('saga', p_key, 'name', p_name, 'step', p_step, 'what', p_what, 'detail', p_detail));
END $$;
-- +goose StatementEnd

-- What the newest event of these kinds says that a step came to, or a signal brought: of those that wait to be appended and of those that are. What was said of its compensation does not count.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_output(p_ns smallint, p_saga bigint, p_step smallint, p_whats pawl.saga_what[], p_new pawl.saga_event[]) RETURNS json
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_bit bigint := 1::bigint << p_step - 1;
BEGIN
  RETURN (SELECT CASE e.what WHEN 'skipped' THEN e.detail->'output' ELSE e.detail END
    FROM (
      SELECT n.seq, n.what, n.detail FROM unnest(p_new) n WHERE n.saga_id = p_saga AND n.step = p_step AND n.what = ANY (p_whats) AND n.undone & v_bit = 0
      UNION ALL
      SELECT x.seq, x.what, x.detail FROM pawl.saga_event x
      WHERE x.ns = p_ns AND x.saga_id = p_saga AND x.step = p_step AND x.what = ANY (p_whats) AND x.undone & v_bit = 0
      ORDER BY 1 DESC LIMIT 1) e);
END $$;
-- +goose StatementEnd

-- Lines the units of a step, a JSON array, or only those of p_only (numbers from 0), as jobs of one priority and policy. Gives the first id of each run of up to 1,024.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_units(g pawl.saga, d pawl.saga_definition, p_step smallint, p_units json, p_only int[]) RETURNS bigint[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_xid   xid8 := pg_current_xact_id();
  v_n     int := coalesce(cardinality(p_only), json_array_length(p_units));
  v_first bigint[];
  v_epoch smallint;
BEGIN
  SELECT l.epoch INTO STRICT v_epoch FROM pawl.line l WHERE l.ns = g.ns AND l.queue_id = d.queue_ids[p_step] AND l.priority = d.priorities[p_step];
  v_first := ARRAY(SELECT nextval('pawl.job_id') << 10 FROM generate_series(0, (v_n - 1) / 1024));
  INSERT INTO pawl.ready (xid, job_id, jobs, queue_id, ns, priority, epoch, attempt, again)
    SELECT v_xid, f.id, least(1024, v_n - (f.i - 1) * 1024), d.queue_ids[p_step], g.ns, d.priorities[p_step], v_epoch, 1, false FROM unnest(v_first) WITH ORDINALITY f(id, i);
  INSERT INTO pawl.job (id, created_at, xid, queue_id, ns, priority, epoch, max_attempts, timeout_ms, backoff_ms, backoff_ms_max, kind, enqueued_by, args, headers, saga_id, saga_step, saga_unit)
    SELECT v_first[(u.k - 1) / 1024 + 1] + (u.k - 1) % 1024, now(), v_xid, d.queue_ids[p_step], g.ns, d.priorities[p_step], v_epoch, d.max_attempts[p_step], d.timeouts_ms[p_step],
        d.backoffs_ms[p_step], d.backoffs_ms_max[p_step], d.kinds[p_step], 'pawl', u.args, g.headers, g.id, p_step, u.n
      FROM (
        SELECT a.n, row_number() OVER (ORDER BY a.n)::int AS k,
          pawl.saga_args(g.key, g.id, d.steps[p_step], d.version, g.input, ',"n":' || a.n || ',"unit":' || a.unit::text) AS args
        FROM (SELECT e.unit, e.i::int - 1 AS n FROM json_array_elements(p_units) WITH ORDINALITY e(unit, i)) a
        WHERE p_only IS NULL OR a.n = ANY (p_only)) u;
  RETURN v_first;
END $$;
-- +goose StatementEnd

-- Has sagas go on: p_whats[i] happened to step p_steps[i] (0: the saga itself) of saga p_sagas[i]. Events are appended, and in the same transaction what follows from them: jobs, timers, children,
-- compensations, the end. What finds its step not waited for, or its saga ended, changes nothing. Gives the queues that got jobs and the keys of the sagas that ended.
-- One round of statements for all sagas, and another one for their children and parents, if those are touched.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_apply(p_ns smallint, p_sagas bigint[], p_steps smallint[], p_whats pawl.saga_what[], p_details json[], p_actor text DEFAULT NULL, OUT queues text[], OUT ended text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_xid     xid8 := pg_current_xact_id();
  v_now     timestamptz := clock_timestamp();
  v_root    bigint;
  it        record;
  g         pawl.saga;             -- the saga at hand,
  d         pawl.saga_definition;  -- its definition,
  s         pawl.saga_event;       -- and its newest event
  j         pawl.job;
  v_events  pawl.saga_event[];     -- to be appended
  v_jobs    pawl.job[];
  -- Runs of jobs by line: up to 1,024 of contiguous ids, which are one row of the line.
  r_line    bigint[];
  r_first   bigint[];
  r_jobs    int[];
  r_epoch   smallint[];
  v_line    bigint;
  r         int;
  v_epoch   smallint;
  v_home    boolean;
  -- What happens to parents and children next.
  n_sagas   bigint[];
  n_steps   smallint[];
  n_whats   pawl.saga_what[];
  n_details json[];
  v_bit     bigint;
  v_mask    bigint;
  v_was     pawl.saga_event;
  v_todo    smallint[];            -- steps to be lined, below 0 for compensations
  v_step    smallint;
  v_units   json;
  v_failed  int[];
  v_child   bigint;
  v_key     text;
  v_error   text;
  v_withdraw boolean;
BEGIN
  queues := '{}';
  ended := '{}';
  FOR v_root IN
    SELECT DISTINCT x.root_id FROM unnest(p_sagas) u CROSS JOIN LATERAL (SELECT y.root_id FROM pawl.saga y WHERE y.ns = p_ns AND y.id = u OFFSET 0) x ORDER BY 1
  LOOP
    PERFORM pg_advisory_xact_lock(pawl.saga_lock_key(v_root));
  END LOOP;
  LOOP
    v_events := '{}';
    v_jobs := '{}';
    r_line := '{}';
    r_first := '{}';
    r_jobs := '{}';
    r_epoch := '{}';
    n_sagas := '{}';
    n_steps := '{}';
    n_whats := '{}';
    n_details := '{}';
    g := NULL;
    FOR it IN
      SELECT u.step, u.what, u.detail, x.saga, e.event
      FROM ROWS FROM (unnest(p_sagas), unnest(p_steps), unnest(p_whats), unnest(p_details)) WITH ORDINALITY u(saga_id, step, what, detail, i)
      CROSS JOIN LATERAL (SELECT y AS saga FROM pawl.saga y WHERE y.ns = p_ns AND y.id = u.saga_id OFFSET 0) x
      LEFT JOIN LATERAL (SELECT y AS event FROM pawl.saga_event y WHERE y.ns = p_ns AND y.saga_id = u.saga_id ORDER BY y.seq DESC LIMIT 1) e ON true
      ORDER BY u.saga_id, u.i
    LOOP
      IF g.id IS DISTINCT FROM (it.saga).id THEN
        g := it.saga;
        s := it.event;
        IF d.id IS DISTINCT FROM g.definition_id THEN
          SELECT y.* INTO d FROM pawl.saga_definition y WHERE y.ns = p_ns AND y.id = g.definition_id;
        END IF;
        IF s.seq IS NULL THEN
          s.ns := p_ns; s.saga_id := g.id; s.seq := 0; s.state := 'running'; s.backward := false;
          s.lined := 0; s.ok := 0; s.refused := 0; s.unknown := 0; s.expanded := 0; s.signalled := 0; s.undoing := 0; s.undone := 0; s.stuck := 0;
        END IF;
      END IF;
      CONTINUE WHEN pawl.saga_over(s.state);
      v_was := s;
      v_todo := '{}';
      s.seq := s.seq + 1;
      s.at := v_now;
      s.what := it.what;
      s.step := it.step;
      s.detail := it.detail;
      s.actor := p_actor;
      s.units := NULL;
      s.units_over := NULL;
      s.units_bad := NULL;
      s.jobs := NULL;
      s.job_steps := NULL;
      v_bit := CASE WHEN it.step > 0 THEN 1::bigint << it.step - 1 ELSE 0 END;

      -- What happened.
      IF it.what IN ('succeeded', 'refused', 'exhausted', 'withdrawn', 'units') AND (v_bit & s.lined & ~(s.ok | s.refused | s.unknown | s.stuck) = 0)
          OR it.what IN ('undone', 'undo_exhausted') AND (v_bit & s.undoing & ~(s.undone | s.stuck) = 0) THEN
        s := v_was;  -- not waited for, or not any more
        CONTINUE;
      END IF;
      IF it.what = 'succeeded' AND d.types[it.step] IN ('each', 'child') AND s.expanded & v_bit = 0 THEN
        -- Its job has told of what it consists. Where none of that can begin, nothing was done.
        v_error := CASE WHEN s.backward THEN 'the saga compensates'
          WHEN d.types[it.step] = 'each' AND json_typeof(it.detail) IS DISTINCT FROM 'array' THEN 'its units are not an array'
          WHEN d.types[it.step] = 'child' AND it.detail IS NULL THEN 'it gave no input' END;
        IF v_error IS NULL AND d.types[it.step] = 'child' THEN
          v_key := g.key || '/' || d.steps[it.step]
            || (SELECT CASE WHEN count(*) > 0 THEN '/' || count(*) + 1 ELSE '' END FROM pawl.saga y WHERE y.ns = p_ns AND y.parent_id = g.id AND y.parent_step = it.step);
          v_child := nextval('pawl.saga_id');
          INSERT INTO pawl.saga (ns, id, root_id, parent_id, parent_step, definition_id, started_at, deadline_at, key, started_by, input, headers)
            SELECT p_ns, v_child, g.root_id, g.id, it.step, y.id, v_now, v_now + y.deadline_ms * interval '1 ms', v_key, 'pawl', it.detail, g.headers
              FROM pawl.saga_definition y WHERE y.ns = p_ns AND y.id = d.children[it.step]
            ON CONFLICT DO NOTHING;
          IF FOUND THEN
            INSERT INTO pawl.saga_timer (ns, saga_id, step, at) SELECT p_ns, v_child, 0, y.deadline_at FROM pawl.saga y WHERE y.ns = p_ns AND y.id = v_child AND y.deadline_at IS NOT NULL;
            n_sagas := n_sagas || v_child;
            n_steps := n_steps || 0::smallint;
            n_whats := n_whats || 'started'::pawl.saga_what;
            n_details := n_details || NULL::json;
          ELSE
            v_error := format('there is a saga %s already', v_key);
          END IF;
        END IF;
        it.what := CASE WHEN v_error IS NULL THEN 'expanded' ELSE 'refused' END;
        s.what := it.what;
        s.detail := json_build_object('error', v_error);
      END IF;
      CASE it.what
        WHEN 'started' THEN
          NULL;
        WHEN 'succeeded' THEN
          s.ok := s.ok | v_bit;
          IF v_bit = d.pivot THEN
            s.backward := false;
          END IF;
        WHEN 'expanded' THEN
          s.expanded := s.expanded | v_bit;
          s.detail := NULL;
          IF d.types[it.step] = 'each' THEN
            s.units := json_array_length(it.detail);
            s.units_over := 0;
            s.units_bad := 0;
            IF s.units = 0 THEN
              s.ok := s.ok | v_bit;
            ELSE
              s.jobs := pawl.saga_units(g, d, it.step, it.detail, NULL);
              s.job_steps := array_fill(it.step, ARRAY[cardinality(s.jobs)]);
              queues := queues || d.queues[it.step];
            END IF;
          END IF;
        WHEN 'refused', 'withdrawn' THEN
          IF v_bit & d.sure & ~d.pivot <> 0 THEN
            s.stuck := s.stuck | v_bit;
          ELSE
            s.refused := s.refused | v_bit;
            s.backward := true;
          END IF;
        WHEN 'exhausted' THEN
          IF v_bit & d.sure <> 0 THEN
            s.stuck := s.stuck | v_bit;
          ELSE
            s.unknown := s.unknown | v_bit;
            s.backward := true;
          END IF;
        WHEN 'units' THEN
          SELECT y.units, y.units_over, y.units_bad INTO s.units, s.units_over, s.units_bad
            FROM (
              SELECT n.seq, n.units, n.units_over, n.units_bad FROM unnest(v_events) n WHERE n.saga_id = g.id AND n.step = it.step AND n.units IS NOT NULL
              UNION ALL
              (SELECT n.seq, n.units, n.units_over, n.units_bad FROM pawl.saga_event n WHERE n.ns = p_ns AND n.saga_id = g.id AND n.step = it.step AND n.units IS NOT NULL ORDER BY n.seq DESC LIMIT 1)
              ORDER BY 1 DESC LIMIT 1) y;
          s.units_over := s.units_over + (it.detail->>'over')::int;
          s.units_bad := s.units_bad + coalesce(json_array_length(it.detail->'failed'), 0);
          IF s.units_over >= s.units AND s.units_bad = 0 THEN
            s.ok := s.ok | v_bit;
          ELSIF s.units_over >= s.units AND v_bit & d.sure <> 0 THEN
            s.stuck := s.stuck | v_bit;
          ELSIF s.units_over >= s.units THEN
            s.unknown := s.unknown | v_bit;
            s.backward := true;
          END IF;
        WHEN 'undone' THEN
          s.undone := s.undone | v_bit;
        WHEN 'undo_exhausted' THEN
          s.stuck := s.stuck | v_bit;
        WHEN 'cancelled', 'expired' THEN
          s.backward := s.backward OR (s.ok | s.stuck) & d.pivot = 0;  -- a pivot that is stuck may have been done
        WHEN 'skipped' THEN
          s.stuck := s.stuck & ~v_bit;
          IF v_bit & s.undoing & ~s.undone <> 0 THEN
            s.undone := s.undone | v_bit;
          ELSE
            s.ok := s.ok | v_bit;
            s.backward := s.backward AND v_bit & d.pivot = 0;
          END IF;
        WHEN 'failed' THEN
          s.stuck := s.stuck & ~v_bit;
          s.refused := s.refused | v_bit;
          s.backward := true;
        WHEN 'retried' THEN
          s.stuck := s.stuck & ~v_bit;
          IF s.undoing & v_bit <> 0 THEN
            v_todo := v_todo || -it.step;
          ELSIF d.types[it.step] = 'signal' THEN  -- it is waited for anew
            INSERT INTO pawl.saga_timer (ns, saga_id, step, at) VALUES (p_ns, g.id, it.step, v_now + d.waits_ms[it.step] * interval '1 ms');
          ELSIF s.expanded & v_bit = 0 THEN
            v_todo := v_todo || it.step;
            s.backward := s.backward AND v_bit <> d.pivot;  -- it goes forward, unless the pivot is refused
          ELSIF d.types[it.step] = 'each' THEN
            -- The units that failed since the step was last retried go again.
            SELECT array_agg((f.n #>> '{}')::int) INTO v_failed FROM pawl.saga_event y CROSS JOIN LATERAL json_array_elements(y.detail->'failed') f(n)
              WHERE y.ns = p_ns AND y.saga_id = g.id AND y.step = it.step AND y.what = 'units'
                AND y.seq > (SELECT coalesce(max(z.seq), 0) FROM pawl.saga_event z WHERE z.ns = p_ns AND z.saga_id = g.id AND z.step = it.step AND z.what = 'retried');
            SELECT json_agg(b.args->'unit' ORDER BY b.saga_unit) INTO v_units
              FROM (SELECT z.jobs FROM pawl.saga_event z WHERE z.ns = p_ns AND z.saga_id = g.id AND z.step = it.step AND z.what = 'expanded' ORDER BY z.seq DESC LIMIT 1) y CROSS JOIN LATERAL unnest(y.jobs) f(id)
              CROSS JOIN LATERAL (SELECT z.* FROM pawl.job z WHERE z.ns = p_ns AND z.id >= f.id AND z.id < f.id + 1024 AND z.saga_id = g.id OFFSET 0) b;
            SELECT y.units, y.units_over - cardinality(v_failed), 0 INTO s.units, s.units_over, s.units_bad FROM pawl.saga_event y
              WHERE y.ns = p_ns AND y.saga_id = g.id AND y.step = it.step AND y.units IS NOT NULL ORDER BY y.seq DESC LIMIT 1;
            IF s.units_over + cardinality(v_failed) = s.units AND json_array_length(v_units) = s.units THEN
              s.jobs := pawl.saga_units(g, d, it.step, v_units, v_failed);
              s.job_steps := array_fill(it.step, ARRAY[cardinality(s.jobs)]);
              queues := queues || d.queues[it.step];
            ELSE  -- jobs of its units are gone: it is split anew
              s.units := NULL;
              s.units_over := NULL;
              s.units_bad := NULL;
              s.expanded := s.expanded & ~v_bit;
              v_todo := v_todo || it.step;
            END IF;
          ELSIF EXISTS (SELECT FROM pawl.saga_now(p_ns, (pawl.saga_child(p_ns, g.id, it.step)).id) y WHERE y.state = 'compensated') THEN  -- nothing of it is left: another one begins
            s.expanded := s.expanded & ~v_bit;
            v_todo := v_todo || it.step;
          ELSE
            s.stuck := v_was.stuck;  -- a child that was forced stays what it is
          END IF;
        WHEN 'forced' THEN
          s.state := 'forced';
        WHEN 'signalled' THEN
          s.signalled := s.signalled | v_bit;
      END CASE;

      -- What follows.
      IF s.state = 'forced' OR s.backward AND NOT v_was.backward THEN
        -- What is waited for is called off: timers and signals have done nothing; jobs that wait in line, of what is forced those of compensations too, are withdrawn by the sweep.
        v_withdraw := s.state = 'forced';
        FOR i IN 1 .. cardinality(d.steps) LOOP
          v_mask := 1::bigint << i - 1;
          CONTINUE WHEN s.lined & v_mask & ~(s.ok | s.refused | s.unknown) = 0;
          IF d.types[i] IN ('timer', 'signal') THEN
            s.refused := s.refused | v_mask;
          ELSIF d.types[i] = 'child' AND s.expanded & v_mask <> 0 THEN
            n_sagas := n_sagas || (pawl.saga_child(p_ns, g.id, i::smallint)).id;
            n_steps := n_steps || 0::smallint;
            n_whats := n_whats || CASE s.state WHEN 'forced' THEN 'forced' ELSE 'cancelled' END::pawl.saga_what;
            n_details := n_details || json_build_object('reason', format('saga %s %s', g.key, CASE s.state WHEN 'forced' THEN 'was forced to its end' ELSE 'has turned back' END));
          ELSE
            v_withdraw := true;
          END IF;
        END LOOP;
        IF v_withdraw THEN
          INSERT INTO pawl.saga_timer (ns, saga_id, step, at) VALUES (p_ns, g.id, -1, v_now) ON CONFLICT (ns, saga_id, step) DO UPDATE SET at = v_now, seen = 0;
        END IF;
      END IF;
      IF s.state = 'forced' THEN
        NULL;
      ELSIF NOT s.backward AND s.ok = d.all_steps THEN
        s.state := 'succeeded';
      ELSIF NOT s.backward THEN
        FOR i IN it.step + 1 .. cardinality(d.steps) LOOP
          v_mask := 1::bigint << i - 1;
          CONTINUE WHEN s.lined & v_mask <> 0 OR d.needs[i] & ~s.ok <> 0;
          s.lined := s.lined | v_mask;
          IF d.types[i] = 'timer' OR d.types[i] = 'signal' THEN
            IF s.signalled & v_mask <> 0 THEN
              n_sagas := n_sagas || g.id;
              n_steps := n_steps || i::smallint;
              n_whats := n_whats || 'succeeded'::pawl.saga_what;
              n_details := n_details || pawl.saga_output(p_ns, g.id, i::smallint, ARRAY['signalled'::pawl.saga_what], v_events || s);
            ELSIF d.waits_ms[i] > 0 THEN
              INSERT INTO pawl.saga_timer (ns, saga_id, step, at) VALUES (p_ns, g.id, i, v_now + d.waits_ms[i] * interval '1 ms');
            END IF;
          ELSE
            v_todo := v_todo || i::smallint;
          END IF;
        END LOOP;
      ELSE
        IF s.lined & ~(s.ok | s.refused | s.unknown) = 0 THEN
          v_mask := s.lined & ~s.refused & ~s.undone & d.undoable;  -- to be undone
          IF v_mask = 0 THEN
            s.state := 'compensated';
          ELSE
            FOR i IN REVERSE cardinality(d.steps) .. 1 LOOP
              CONTINUE WHEN v_mask & (1::bigint << i - 1) = 0 OR s.undoing & (1::bigint << i - 1) <> 0 OR d.below[i] & v_mask <> 0;
              s.undoing := s.undoing | (1::bigint << i - 1);
              v_todo := v_todo || -i::smallint;
            END LOOP;
          END IF;
        END IF;
      END IF;
      IF NOT pawl.saga_over(s.state) THEN
        s.state := CASE WHEN s.stuck <> 0 THEN 'stuck' WHEN s.backward THEN 'compensating' ELSE 'running' END::pawl.saga_state;
      END IF;
      IF s.stuck & ~v_was.stuck <> 0 THEN
        PERFORM pawl.saga_alert(p_ns, g.key, d.name, d.steps[it.step], s.what, s.detail);
      END IF;

      -- Jobs for it.
      FOREACH v_step IN ARRAY v_todo LOOP
        j.saga_id := g.id;
        j.saga_step := v_step;
        j.headers := g.headers;
        j.args := pawl.saga_args(g.key, g.id, d.steps[abs(v_step)], d.version, g.input, CASE WHEN v_step > 0 THEN ''
          WHEN s.ok & (1::bigint << -v_step - 1) = 0 THEN ',"output":null'
          ELSE ',"output":' || coalesce(pawl.saga_output(p_ns, g.id, -v_step, ARRAY['succeeded', 'skipped']::pawl.saga_what[], v_events || s)::text, 'null') END);
        IF v_step > 0 THEN
          j.kind := d.kinds[v_step];
          j.queue_id := d.queue_ids[v_step];
          j.max_attempts := d.max_attempts[v_step];
          j.timeout_ms := d.timeouts_ms[v_step];
          j.backoff_ms := d.backoffs_ms[v_step];
          j.backoff_ms_max := d.backoffs_ms_max[v_step];
          v_key := d.queues[v_step];
        ELSE
          j.kind := d.kinds[-v_step] || '/undo';
          j.queue_id := d.undo_queue_ids[-v_step];
          j.max_attempts := d.undo_max_attempts[-v_step];
          j.timeout_ms := d.undo_timeouts_ms[-v_step];
          j.backoff_ms := d.undo_backoffs_ms[-v_step];
          j.backoff_ms_max := d.undo_backoffs_ms_max[-v_step];
          v_key := d.undo_queues[-v_step];
        END IF;
        j.priority := d.priorities[abs(v_step)];
        v_line := j.queue_id::bigint * 8 + j.priority;
        r := array_position(r_line, v_line);
        IF r IS NULL OR r_jobs[r] = 1024 THEN
          IF r IS NULL THEN
            SELECT l.epoch, pawl.is_home(l.cluster) INTO v_epoch, v_home FROM pawl.line l WHERE l.ns = p_ns AND l.queue_id = j.queue_id AND l.priority = j.priority;
            IF NOT v_home THEN
              PERFORM pawl.raise_moved(v_key);
            END IF;
            IF v_key <> ALL (queues) THEN
              queues := queues || v_key;
            END IF;
          END IF;
          r_epoch := r_epoch || coalesce(r_epoch[r], v_epoch);
          IF r IS NOT NULL THEN
            r_line[r] := -v_line;  -- full
          END IF;
          r := cardinality(r_line) + 1;
          r_line[r] := v_line;
          r_first[r] := nextval('pawl.job_id') << 10;
          r_jobs[r] := 0;
        END IF;
        j.id := r_first[r] + r_jobs[r];
        j.epoch := r_epoch[r];
        r_jobs[r] := r_jobs[r] + 1;
        v_jobs := v_jobs || j;
        s.jobs := s.jobs || j.id;
        s.job_steps := s.job_steps || v_step;
      END LOOP;
      v_events := v_events || s;

      -- Its end.
      IF pawl.saga_over(s.state) THEN
        ended := ended || g.key;
        DELETE FROM pawl.saga_hold h WHERE -h.ns = -p_ns AND h.saga_id = g.id;
        IF g.parent_id IS NOT NULL THEN
          n_sagas := n_sagas || g.parent_id;
          n_steps := n_steps || g.parent_step;
          n_whats := n_whats || CASE s.state WHEN 'succeeded' THEN 'succeeded' WHEN 'compensated' THEN 'refused' ELSE 'exhausted' END::pawl.saga_what;
          n_details := n_details || CASE s.state WHEN 'succeeded' THEN NULL ELSE json_build_object('error', format('saga %s: %s', g.key, s.state)) END;
        END IF;
      END IF;
    END LOOP;
    EXIT WHEN cardinality(v_events) = 0;
    INSERT INTO pawl.saga_event (ns, saga_id, seq, at, what, state, step, backward, lined, ok, refused, unknown, expanded, signalled, undoing, undone, stuck,
        units, units_over, units_bad, jobs, job_steps, detail, actor)
      SELECT x.ns, x.saga_id, x.seq, x.at, x.what, x.state, x.step, x.backward, x.lined, x.ok, x.refused, x.unknown, x.expanded, x.signalled, x.undoing, x.undone, x.stuck,
        x.units, x.units_over, x.units_bad, x.jobs, x.job_steps, x.detail, x.actor FROM unnest(v_events) x;
    IF cardinality(v_jobs) > 0 THEN
      INSERT INTO pawl.ready (xid, job_id, jobs, queue_id, ns, priority, epoch, attempt, again)
        SELECT v_xid, x.first, x.n, abs(x.line) >> 3, p_ns, abs(x.line) & 7, x.epoch, 1, false
        FROM ROWS FROM (unnest(r_line), unnest(r_first), unnest(r_jobs), unnest(r_epoch)) x(line, first, n, epoch);
      INSERT INTO pawl.job (id, created_at, xid, queue_id, ns, priority, epoch, max_attempts, timeout_ms, backoff_ms, backoff_ms_max, kind, enqueued_by, args, headers, saga_id, saga_step)
        SELECT x.id, v_now, v_xid, x.queue_id, p_ns, x.priority, x.epoch, x.max_attempts, x.timeout_ms, x.backoff_ms, x.backoff_ms_max, x.kind, 'pawl', x.args, x.headers, x.saga_id, x.saga_step
        FROM unnest(v_jobs) x;
    END IF;
    EXIT WHEN cardinality(n_sagas) = 0;
    p_sagas := n_sagas;
    p_steps := n_steps;
    p_whats := n_whats;
    p_details := n_details;
    p_actor := NULL;
  END LOOP;
END $$;
-- +goose StatementEnd

-- Has sagas go on by how attempts of their steps ended: those that are final. p_units: the number of a unit, NULL for the step itself. Units of a step count together.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_endings(p_ns smallint, p_sagas bigint[], p_steps smallint[], p_units int[], p_outcomes pawl.outcome[], p_details json[], OUT queues text[], OUT ended text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_sagas   bigint[];
  v_steps   smallint[];
  v_whats   pawl.saga_what[];
  v_details json[];
BEGIN
  SELECT array_agg(u.saga), array_agg(abs(u.step)), array_agg(CASE WHEN u.outcome = 'succeeded' AND u.step > 0 THEN 'succeeded' WHEN u.outcome = 'succeeded' THEN 'undone' WHEN u.step < 0 THEN 'undo_exhausted'
      WHEN (u.detail->>'refused')::boolean THEN 'refused' ELSE 'exhausted' END::pawl.saga_what), array_agg(u.detail)
    INTO v_sagas, v_steps, v_whats, v_details
    FROM ROWS FROM (unnest(p_sagas), unnest(p_steps), unnest(p_units), unnest(p_outcomes), unnest(p_details)) u(saga, step, unit, outcome, detail)
    WHERE u.unit IS NULL;
  IF array_remove(p_units, NULL) <> '{}' THEN
    SELECT v_sagas || array_agg(x.saga), v_steps || array_agg(x.step), v_whats || array_agg('units'::pawl.saga_what), v_details || array_agg(x.detail)
      INTO v_sagas, v_steps, v_whats, v_details
      FROM (
        SELECT u.saga, u.step, json_build_object('over', count(*), 'units', range_agg(int4range(u.unit, u.unit + 1))::text,
            'outputs', json_object_agg(u.unit, u.detail) FILTER (WHERE u.outcome = 'succeeded' AND u.detail::text <> 'null'),
            'failed', coalesce(json_agg(u.unit) FILTER (WHERE u.outcome <> 'succeeded'), '[]'),
            'error', min(u.detail->>'error') FILTER (WHERE u.outcome <> 'succeeded')) AS detail
        FROM ROWS FROM (unnest(p_sagas), unnest(p_steps), unnest(p_units), unnest(p_outcomes), unnest(p_details)) u(saga, step, unit, outcome, detail)
        WHERE u.unit IS NOT NULL
        GROUP BY u.saga, u.step) x;
  END IF;
  SELECT a.queues, a.ended INTO queues, ended FROM pawl.saga_apply(p_ns, v_sagas, v_steps, v_whats, v_details) a;
END $$;
-- +goose StatementEnd

-- Starts sagas of one definition (p_version 0: the newest), each by its key and input, in the caller's transaction. A key that is there with the same definition and input is a duplicate, and nothing is done for it.
-- p_deadlines_ms negative, or NULL as a whole: the definition's; 0: none. p_headers may be NULL as a whole too. p_gathered: they come of several callers, in a transaction of its own; where a key is locked by
-- another transaction, 55P03 is raised at once. Raises PW020 when a key is there with another input or definition, PW021 when there is no such definition.
-- Where a saga begins with one job, as most do, that is lined here: saga_apply, whose statements are for all cases, takes five times as long for it.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_start(p_ns smallint, p_name text, p_version int, p_keys text[], p_inputs json[], p_deadlines_ms bigint[], p_headers json[], p_gathered boolean, OUT duplicates boolean[], OUT queues text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  c_input_bytes_max CONSTANT int := 262144;
  c_patience        CONSTANT text := '20ms';  -- for locks that hold up several callers
  v_now      timestamptz := now();
  v_by       text := coalesce(nullif(current_setting('application_name'), ''), session_user);
  v_xid      xid8 := pg_current_xact_id();
  v_n        int := cardinality(p_keys);
  d          record;
  i          int;
  v_order    int[] := '{1}';
  v_id       bigint;
  v_job      bigint;
  v_deadline timestamptz;
  n_ids      bigint[] := '{}';  -- those that are new,
  n_order    int[] := '{}';     -- which they are,
  t_ids      bigint[] := '{}';  -- and those of them that have a deadline
  t_at       timestamptz[] := '{}';
BEGIN
  IF v_n NOT BETWEEN 1 AND 1000 OR v_n <> cardinality(p_inputs) OR v_n <> cardinality(p_deadlines_ms) OR v_n <> cardinality(p_headers) THEN
    RAISE EXCEPTION 'pawl: a batch has 1 to 1000 sagas, each with a key and an input, not % and %', v_n, cardinality(p_inputs) USING ERRCODE = '22023';
  END IF;
  SELECT y.id, y.deadline_ms, y.begins_alone, y.version, y.steps[1] AS step, y.kinds[1] AS kind, y.queues[1] AS queue, y.queue_ids[1] AS queue_id, y.priorities[1] AS priority,
      y.max_attempts[1] AS max_attempts, y.timeouts_ms[1] AS timeout_ms, y.backoffs_ms[1] AS backoff_ms, y.backoffs_ms_max[1] AS backoff_ms_max, l.epoch, pawl.is_home(l.cluster) AS home
    INTO d FROM pawl.saga_definition y
    LEFT JOIN LATERAL (SELECT x.epoch, x.cluster FROM pawl.line x WHERE x.ns = p_ns AND x.queue_id = y.queue_ids[1] AND x.priority = y.priorities[1] OFFSET 0) l ON true
    WHERE y.ns = p_ns AND y.name = p_name AND (y.version = p_version OR p_version = 0) ORDER BY y.version DESC LIMIT 1;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'pawl: saga %, version %, is not registered', p_name, p_version USING ERRCODE = 'PW021', HINT = 'Register the definition when the service starts.';
  END IF;
  IF NOT d.home THEN
    PERFORM pawl.raise_moved(d.queue);
  END IF;
  queues := '{}';
  IF v_n > 1 THEN  -- in the order of keys: two starts of the same sagas wait for each other in the same order
    v_order := ARRAY(SELECT u.i FROM unnest(p_keys) WITH ORDINALITY u(key, i) ORDER BY u.key, u.i);
  END IF;
  IF p_gathered THEN
    PERFORM set_config('lock_timeout', c_patience, true);
  END IF;
  FOREACH i IN ARRAY v_order LOOP
    IF p_keys[i] IS NULL OR length(p_keys[i]) NOT BETWEEN 1 AND 256 THEN
      RAISE EXCEPTION 'pawl: a saga''s id has 1 to 256 characters, not %', coalesce(length(p_keys[i]), 0) USING ERRCODE = '22023';
    END IF;
    IF p_inputs[i] IS NULL THEN
      RAISE EXCEPTION 'pawl: a saga''s input is JSON, not NULL' USING ERRCODE = '22023';
    END IF;
    IF octet_length(p_inputs[i]::text) > c_input_bytes_max THEN
      RAISE EXCEPTION 'pawl: an input of % bytes exceeds the % allowed', octet_length(p_inputs[i]::text), c_input_bytes_max USING ERRCODE = 'PW002',
        HINT = 'Store it elsewhere and start the saga with its key: each step carries the input.';
    END IF;
    v_id := nextval('pawl.saga_id');
    v_deadline := clock_timestamp() + nullif(coalesce(CASE WHEN p_deadlines_ms[i] >= 0 THEN p_deadlines_ms[i] END, d.deadline_ms), 0) * interval '1 ms';
    INSERT INTO pawl.saga (ns, id, root_id, definition_id, started_at, deadline_at, key, started_by, input, headers)
      VALUES (p_ns, v_id, v_id, d.id, v_now, v_deadline, p_keys[i], v_by, p_inputs[i], p_headers[i]) ON CONFLICT DO NOTHING;
    duplicates[i] := NOT FOUND;
    IF FOUND THEN
      n_ids := n_ids || v_id;
      n_order := n_order || i;
      IF v_deadline IS NOT NULL THEN
        t_ids := t_ids || v_id;
        t_at := t_at || v_deadline;
      END IF;
    ELSE
      PERFORM pawl.saga_same(p_ns, p_keys[i], d.id, p_inputs[i]);
    END IF;
  END LOOP;
  v_n := cardinality(n_ids);
  IF v_n = 0 THEN
    RETURN;
  END IF;
  IF t_ids <> '{}' THEN
    INSERT INTO pawl.saga_timer (ns, saga_id, step, at) SELECT p_ns, t.id, 0, t.at FROM ROWS FROM (unnest(t_ids), unnest(t_at)) t(id, at);
  END IF;
  IF NOT d.begins_alone THEN
    SELECT a.queues INTO queues FROM pawl.saga_apply(p_ns, n_ids, array_fill(0::smallint, ARRAY[v_n]), array_fill('started'::pawl.saga_what, ARRAY[v_n]), array_fill(NULL::json, ARRAY[v_n])) a;
    RETURN;
  END IF;
  v_job := nextval('pawl.job_id') << 10;
  INSERT INTO pawl.saga_event (ns, saga_id, seq, at, what, state, step, backward, lined, ok, refused, unknown, expanded, signalled, undoing, undone, stuck, jobs, job_steps)
    SELECT p_ns, n_ids[k], 1, clock_timestamp(), 'started', 'running', 0, false, 1, 0, 0, 0, 0, 0, 0, 0, 0, ARRAY[v_job + k - 1], '{1}' FROM generate_series(1, v_n) k;
  INSERT INTO pawl.ready (xid, job_id, jobs, queue_id, ns, priority, epoch, attempt, again) VALUES (v_xid, v_job, v_n, d.queue_id, p_ns, d.priority, d.epoch, 1, false);
  INSERT INTO pawl.job (id, created_at, xid, queue_id, ns, priority, epoch, max_attempts, timeout_ms, backoff_ms, backoff_ms_max, kind, enqueued_by, args, headers, saga_id, saga_step)
    SELECT v_job + k - 1, v_now, v_xid, d.queue_id, p_ns, d.priority, d.epoch, d.max_attempts, d.timeout_ms, d.backoff_ms, d.backoff_ms_max, d.kind, 'pawl',
        pawl.saga_args(p_keys[n_order[k]], n_ids[k], d.step, d.version, p_inputs[n_order[k]]), p_headers[n_order[k]], n_ids[k], 1
      FROM generate_series(1, v_n) k;
  queues := ARRAY[d.queue];
END $$;
-- +goose StatementEnd

-- Raises PW020 unless the saga of that key has this definition and input.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_same(p_ns smallint, p_key text, p_definition int, p_input json) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  x record;
BEGIN
  SELECT y.definition_id, y.input::jsonb = p_input::jsonb AS same, z.name, z.version INTO x
    FROM pawl.saga y JOIN pawl.saga_definition z ON z.ns = p_ns AND z.id = y.definition_id WHERE -y.ns = -p_ns AND y.key = p_key;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'pawl: saga % was started by a transaction that this one cannot see', p_key USING ERRCODE = '40001', HINT = 'Try again in a new transaction.';
  END IF;
  IF x.definition_id <> p_definition THEN
    RAISE EXCEPTION 'pawl: saga % is there, of definition %, version %', p_key, x.name, x.version USING ERRCODE = 'PW020', HINT = 'Another saga needs another id.';
  ELSIF NOT x.same THEN
    RAISE EXCEPTION 'pawl: saga % is there with another input', p_key USING ERRCODE = 'PW020', HINT = 'Another saga needs another id.';
  END IF;
END $$;
-- +goose StatementEnd

-- The saga of that key, under its lock; raises PW024 when there is none, PW023 when it has ended. The state is read in the statement after the one that locks.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_open(p_ns smallint, p_key text, OUT saga pawl.saga, OUT event pawl.saga_event)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET lock_timeout = '10s' AS $$
BEGIN
  PERFORM pawl.require_read_committed();
  SELECT y.* INTO saga FROM pawl.saga y WHERE -y.ns = -p_ns AND y.key = p_key;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'pawl: there is no saga %', p_key USING ERRCODE = 'PW024';
  END IF;
  PERFORM pg_advisory_xact_lock(pawl.saga_lock_key((saga).root_id));
  SELECT y.* INTO event FROM pawl.saga_now(p_ns, (saga).id) y;
  IF pawl.saga_over((event).state) THEN
    RAISE EXCEPTION 'pawl: saga % has ended: it is %', p_key, (event).state USING ERRCODE = 'PW023';
  END IF;
END $$;
-- +goose StatementEnd

-- What an operator, or its owner, has a saga do, in the caller's transaction: cancelled, retried, skipped, failed (a step was not done) or forced. p_detail is kept with the event. was: its state before.
-- Raises PW022 when it is too late to cancel, PW025 when the step, or the saga, does not wait for this; and what saga_open raises.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_act(p_ns smallint, p_key text, p_what pawl.saga_what, p_step text, p_output json, p_actor text, p_reason text, OUT was pawl.saga_state, OUT queues text[], OUT ended text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  o       record;
  d       record;
  s       pawl.saga_event;
  v_step  smallint := 0;
  v_steps smallint[];
  v_bit   bigint := 0;
  v_undo  boolean := false;
BEGIN
  SELECT x.saga, x.event INTO o FROM pawl.saga_open(p_ns, p_key) x;
  s := o.event;
  was := s.state;
  SELECT y.steps, y.types, y.pivot, y.sure INTO d FROM pawl.saga_definition y WHERE y.ns = p_ns AND y.id = (o.saga).definition_id;
  IF p_what IN ('skipped', 'failed') THEN
    v_step := array_position(d.steps, p_step);
    IF v_step IS NULL THEN
      RAISE EXCEPTION 'pawl: saga % has no step %', p_key, p_step USING ERRCODE = 'PW024';
    END IF;
    v_bit := 1::bigint << v_step - 1;
    v_undo := s.undoing & v_bit <> 0;
    IF s.stuck & v_bit = 0 THEN
      RAISE EXCEPTION 'pawl: step % of saga % is not stuck', p_step, p_key USING ERRCODE = 'PW025';
    END IF;
    IF p_what = 'failed' AND (v_undo OR v_bit & d.sure & ~d.pivot <> 0) THEN
      RAISE EXCEPTION 'pawl: step % of saga % must be done: there is no way back behind the pivot or in a compensation', p_step, p_key USING ERRCODE = 'PW025',
        HINT = 'Retry it, skip it as done, or force the saga to its end.';
    END IF;
  ELSIF p_what = 'retried' AND s.stuck = 0 THEN
    RAISE EXCEPTION 'pawl: saga % is not stuck: it is %', p_key, s.state USING ERRCODE = 'PW025';
  ELSIF p_what = 'retried' AND NOT EXISTS (SELECT FROM unnest(d.types) WITH ORDINALITY y(type, i), LATERAL (SELECT 1::bigint << y.i::int - 1 AS bit) m
      WHERE s.stuck & m.bit <> 0 AND (y.type <> 'child' OR s.expanded & m.bit = 0 OR s.undoing & m.bit <> 0
        OR EXISTS (SELECT FROM pawl.saga_now(p_ns, (pawl.saga_child(p_ns, (o.saga).id, y.i::smallint)).id) c WHERE c.state = 'compensated'))) THEN
    RAISE EXCEPTION 'pawl: saga % is stuck at a child that was forced to its end, and does not begin again', p_key USING ERRCODE = 'PW025', HINT = 'Skip the step, or force the saga to its end.';
  ELSIF p_what = 'cancelled' AND (s.ok | s.stuck) & d.pivot <> 0 THEN
    RAISE EXCEPTION 'pawl: saga % cannot be cancelled any more: it has passed its pivot', p_key USING ERRCODE = 'PW022', HINT = 'It goes forward. If its pivot is stuck and was not done, skip that as not done.';
  ELSIF p_what = 'cancelled' AND s.backward THEN
    queues := '{}';
    ended := '{}';
    RETURN;
  ELSIF p_what NOT IN ('retried', 'cancelled', 'forced') THEN
    RAISE EXCEPTION 'pawl: % is nothing that can be done to a saga', p_what USING ERRCODE = '22023';
  END IF;
  -- All steps that are stuck are retried, each with an event of its own: of units, one tells of one step.
  v_steps := CASE WHEN p_what = 'retried' THEN ARRAY(SELECT i::smallint FROM generate_series(1, cardinality(d.steps)) i WHERE s.stuck & (1::bigint << i - 1) <> 0) ELSE ARRAY[v_step] END;
  SELECT a.queues, a.ended INTO queues, ended FROM pawl.saga_apply(p_ns, array_fill((o.saga).id, ARRAY[cardinality(v_steps)]), v_steps, array_fill(p_what, ARRAY[cardinality(v_steps)]),
    array_fill(CASE WHEN p_output IS NULL THEN json_build_object('reason', p_reason) ELSE json_build_object('reason', p_reason, 'output', p_output) END, ARRAY[cardinality(v_steps)]), p_actor) a;
END $$;
-- +goose StatementEnd

-- Brings a value to a signal of a saga, in the caller's transaction; one that comes before its turn is kept. Raises PW025 when one came before or the saga compensates, and what saga_open raises.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_send(p_ns smallint, p_key text, p_signal text, p_value json, OUT queues text[], OUT ended text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  o      record;
  s      pawl.saga_event;
  v_step smallint;
  v_bit  bigint;
BEGIN
  SELECT x.saga, x.event INTO o FROM pawl.saga_open(p_ns, p_key) x;
  s := o.event;
  SELECT array_position(y.steps, p_signal) INTO v_step FROM pawl.saga_definition y WHERE y.ns = p_ns AND y.id = (o.saga).definition_id AND y.types[array_position(y.steps, p_signal)] = 'signal';
  IF v_step IS NULL THEN
    RAISE EXCEPTION 'pawl: saga % has no signal %', p_key, p_signal USING ERRCODE = 'PW024';
  END IF;
  v_bit := 1::bigint << v_step - 1;
  IF s.backward OR (s.ok | s.refused | s.unknown | s.signalled | s.stuck) & v_bit <> 0 THEN
    RAISE EXCEPTION 'pawl: saga % does not wait for signal %: %', p_key, p_signal, CASE WHEN s.backward THEN 'it compensates' ELSE 'it had one before, or its time is over' END USING ERRCODE = 'PW025';
  END IF;
  SELECT a.queues, a.ended INTO queues, ended FROM pawl.saga_apply(p_ns, ARRAY[(o.saga).id], ARRAY[v_step],
    ARRAY[CASE WHEN s.lined & v_bit <> 0 THEN 'succeeded' ELSE 'signalled' END::pawl.saga_what], ARRAY[coalesce(p_value, 'null')]) a;
END $$;
-- +goose StatementEnd

-- Takes a semantic lock for a saga, in the caller's transaction, until the one that ends the saga. Gives the key of the saga that has it, NULL if it is this one now. Raises PW024 when there is no such saga, PW023
-- when it has ended. The saga itself is not locked: an attempt that holds that would wait in a circle with an ending that has the claim and waits for the saga. What an ended saga still has was taken by a
-- transaction that came too late, and is free.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_hold(p_ns smallint, p_key text, p_name text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET lock_timeout = '5s' AS $$
DECLARE
  g       record;
  v_other record;
BEGIN
  PERFORM pawl.require_read_committed();
  SELECT y.id, e.state INTO g FROM pawl.saga y CROSS JOIN LATERAL pawl.saga_now(p_ns, y.id) e WHERE -y.ns = -p_ns AND y.key = p_key;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'pawl: there is no saga %', p_key USING ERRCODE = 'PW024';
  END IF;
  IF pawl.saga_over(g.state) THEN
    RAISE EXCEPTION 'pawl: saga % has ended: it is %', p_key, g.state USING ERRCODE = 'PW023';
  END IF;
  FOR i IN 1 .. 5 LOOP
    INSERT INTO pawl.saga_hold (ns, name, saga_id, held_at) VALUES (p_ns, p_name, g.id, clock_timestamp()) ON CONFLICT DO NOTHING;
    IF FOUND THEN
      RETURN NULL;
    END IF;
    SELECT y.id, y.key, e.state INTO v_other FROM pawl.saga_hold h
      CROSS JOIN LATERAL (SELECT z.id, z.key FROM pawl.saga z WHERE z.ns = p_ns AND z.id = h.saga_id OFFSET 0) y  -- by its id, also in a table without statistics
      CROSS JOIN LATERAL pawl.saga_now(p_ns, y.id) e
      WHERE h.ns = p_ns AND h.name = p_name;
    IF v_other.id = g.id THEN
      RETURN NULL;
    ELSIF NOT pawl.saga_over(v_other.state) THEN
      RETURN v_other.key;
    END IF;
    DELETE FROM pawl.saga_hold h WHERE h.ns = p_ns AND h.name = p_name AND h.saga_id = v_other.id;  -- or it was freed meanwhile
  END LOOP;
  RAISE EXCEPTION 'pawl: lock % changes hands too fast', p_name USING ERRCODE = '40001', HINT = 'Try again.';
END $$;
-- +goose StatementEnd

-- The sweep "sagas": does up to p_limit things whose time has come: deadlines, timers, ends of waits for signals. Gives the sagas whose waiting jobs are to be withdrawn, for saga_withdraw, and how long until the
-- next thing is due (NULL: nothing is). did NULL: another node is at it.
-- +goose StatementBegin
CREATE FUNCTION pawl.sweep_sagas(p_ns smallint, p_limit int, OUT did int, OUT withdraw bigint[], OUT next_in interval, OUT queues text[], OUT ended text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_custom_plan SET lock_timeout = '5s' AS $$
DECLARE
  v_now   timestamptz := clock_timestamp();
  v_sagas bigint[];
  v_steps smallint[];
BEGIN
  PERFORM pawl.require_read_committed();
  IF NOT pg_try_advisory_xact_lock(pawl.sweep_key(p_ns, 'sagas')) THEN
    RETURN;
  END IF;
  SELECT count(*), array_agg(x.saga_id) FILTER (WHERE x.step >= 0), array_agg(x.step) FILTER (WHERE x.step >= 0), coalesce(array_agg(x.saga_id) FILTER (WHERE x.step < 0), '{}')
    INTO did, v_sagas, v_steps, withdraw
    FROM (SELECT y.saga_id, y.step FROM pawl.saga_timer y WHERE -y.ns = -p_ns AND y.at <= v_now ORDER BY y.at, y.saga_id, y.step LIMIT p_limit) x;
  queues := '{}';
  ended := '{}';
  IF v_sagas IS NOT NULL THEN
    FOR i IN 1 .. cardinality(v_sagas) LOOP
      DELETE FROM pawl.saga_timer y WHERE y.ns = p_ns AND y.saga_id = v_sagas[i] AND y.step = v_steps[i];
    END LOOP;
    SELECT a.queues, a.ended INTO queues, ended
      FROM (
        SELECT array_agg(u.saga) AS sagas, array_agg(u.step) AS steps,
          array_agg(CASE WHEN u.step = 0 THEN 'expired' WHEN d.types[u.step] = 'timer' THEN 'succeeded' ELSE 'refused' END::pawl.saga_what) AS whats,
          array_agg(CASE WHEN d.types[u.step] = 'signal' THEN json_build_object('error', 'the signal did not come in time') END) AS details
        FROM ROWS FROM (unnest(v_sagas), unnest(v_steps)) u(saga, step)
        CROSS JOIN LATERAL (SELECT y.definition_id FROM pawl.saga y WHERE y.ns = p_ns AND y.id = u.saga OFFSET 0) g
        CROSS JOIN LATERAL (SELECT y.types FROM pawl.saga_definition y WHERE y.ns = p_ns AND y.id = g.definition_id OFFSET 0) d) t
      CROSS JOIN LATERAL pawl.saga_apply(p_ns, t.sagas, t.steps, t.whats, t.details) a;
  END IF;
  SELECT y.at - clock_timestamp() INTO next_in FROM pawl.saga_timer y WHERE -y.ns = -p_ns AND y.step >= 0 ORDER BY y.at LIMIT 1;
END $$;
-- +goose StatementEnd

-- The jobs behind p_after of the units of these steps, a mask, as far as they are kept.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_units_of(s pawl.saga_event, p_steps bigint, p_after bigint) RETURNS TABLE (step smallint, job bigint, unit int)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
  RETURN QUERY
    SELECT f.step, b.id, b.saga_unit FROM pawl.saga_event y CROSS JOIN LATERAL ROWS FROM (unnest(y.jobs), unnest(y.job_steps)) f(id, step)
    CROSS JOIN LATERAL (SELECT z.id, z.saga_unit FROM pawl.job z
      WHERE z.ns = s.ns AND z.id >= f.id AND z.id < f.id + 1024 AND z.id > p_after AND z.saga_id = s.saga_id AND z.saga_step = f.step AND z.saga_unit IS NOT NULL OFFSET 0) b
    WHERE y.ns = s.ns AND y.saga_id = s.saga_id AND y.what IN ('expanded', 'retried') AND f.step > 0 AND p_steps & (1::bigint << f.step - 1) <> 0
      AND f.id & 1023 = 0 AND f.id + 1024 > p_after;  -- each run of units begins a draw of ids
END $$;
-- +goose StatementEnd

-- Takes the jobs of a saga that compensates, or was forced to its end, out of the line, with the units of its steps, which count as over and failed; those that run are asked to stop, and answer: sessions has whom
-- to hint. A pivot that has ever begun is left alone, since nobody could undo it. One call looks at up to c_units_max units, since nobody claims from their line meanwhile; more: the next goes on behind them.
-- In a transaction of its own: lines are locked before the saga.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_withdraw(p_ns smallint, p_saga bigint, OUT jobs int, OUT more boolean, OUT sessions bigint[], OUT queues text[], OUT ended text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET lock_timeout = '5s' AS $$
DECLARE
  c_units_max CONSTANT int := 200;
  c_error   CONSTANT text := 'withdrawn from the line';
  s         pawl.saga_event;
  v_at      timestamptz;
  v_seen    bigint;
  v_last    bigint;
  v_open    bigint;
  v_pivot   bigint;
  v_began   boolean;
  v_was     pawl.job_state;
  v_session bigint;
  w         record;
  o_steps   smallint[] := '{}';  -- what is waited for: steps, each with the newest job for it, then units
  o_jobs    bigint[] := '{}';
  o_units   int[] := '{}';
  v_steps   smallint[] := '{}';
  v_whats   pawl.saga_what[] := '{}';
  v_details json[] := '{}';
  u_steps   smallint[] := '{}';  -- units that were withdrawn
  u_units   int[] := '{}';
BEGIN
  jobs := 0;
  more := false;
  sessions := '{}';
  queues := '{}';
  ended := '{}';
  SELECT y.at, y.seen INTO v_at, v_seen FROM pawl.saga_timer y WHERE y.ns = p_ns AND y.saga_id = p_saga AND y.step = -1;
  IF NOT FOUND THEN
    RETURN;  -- another node was here
  END IF;
  SELECT y.* INTO s FROM pawl.saga_now(p_ns, p_saga) y;
  SELECT d.pivot INTO v_pivot FROM pawl.saga y JOIN pawl.saga_definition d ON d.ns = p_ns AND d.id = y.definition_id WHERE y.ns = p_ns AND y.id = p_saga;
  v_open := s.lined & ~(s.ok | s.refused | s.unknown);
  IF v_seen = 0 AND (s.backward OR s.state = 'forced') THEN
    SELECT coalesce(array_agg(x.step), '{}'), coalesce(array_agg(x.job), '{}'), array_fill(NULL::int, ARRAY[count(*)::int]) INTO o_steps, o_jobs, o_units
      FROM (
        SELECT DISTINCT ON (u.step) u.step, u.job FROM pawl.saga_event y CROSS JOIN LATERAL ROWS FROM (unnest(y.jobs), unnest(y.job_steps)) u(job, step)
        WHERE y.ns = p_ns AND y.saga_id = p_saga
          AND (u.step > 0 AND v_open & ~s.expanded & (1::bigint << u.step - 1) <> 0
            OR u.step < 0 AND s.state = 'forced' AND s.undoing & ~s.undone & (1::bigint << -u.step - 1) <> 0)
        ORDER BY u.step, y.seq DESC) x;
  END IF;
  IF v_open & s.expanded <> 0 AND (s.backward OR s.state = 'forced') THEN
    SELECT o_steps || array_agg(x.step), o_jobs || array_agg(x.job), o_units || array_agg(x.unit), count(*) = c_units_max, max(x.job) INTO o_steps, o_jobs, o_units, more, v_last
      FROM (SELECT u.* FROM pawl.saga_units_of(s, v_open & s.expanded, v_seen) u ORDER BY u.job LIMIT c_units_max) x;
  END IF;
  -- The lines, in order, then the claims, in order, as everyone takes them. Nobody claims a job between the look at it and the deed.
  PERFORM pg_advisory_xact_lock(l.key)
    FROM (SELECT DISTINCT pawl.line_key(p_ns, b.queue_id, b.priority) AS key FROM unnest(o_jobs) u(id) CROSS JOIN LATERAL (SELECT y.queue_id, y.priority FROM pawl.job y WHERE y.ns = p_ns AND y.id = u.id OFFSET 0) b ORDER BY 1) l;
  FOR w IN
    SELECT u.step, u.job, u.unit, x.state,
      CASE WHEN u.unit IS NULL THEN ARRAY(SELECT z.job FROM pawl.saga_event y CROSS JOIN LATERAL ROWS FROM (unnest(y.jobs), unnest(y.job_steps)) z(job, step)
        WHERE y.ns = p_ns AND y.saga_id = p_saga AND z.step = u.step) END AS jobs
    FROM ROWS FROM (unnest(o_steps), unnest(o_jobs), unnest(o_units)) u(step, job, unit) CROSS JOIN LATERAL pawl.job_state(p_ns, u.job) x
    ORDER BY x.claim_id, u.step, u.job
  LOOP
    CONTINUE WHEN w.state IS NULL OR w.state IN ('succeeded', 'discarded', 'cancelled');  -- the saga has heard of it, or the proof will find that it cannot
    v_began := EXISTS (SELECT FROM unnest(w.jobs) b CROSS JOIN LATERAL pawl.job_attempts(p_ns, b) a
      WHERE a.claim_id IS NOT NULL AND (a.outcome = 'returned' AND a.detail->>'unrun' = 'true') IS NOT TRUE);
    CONTINUE WHEN s.state <> 'forced' AND v_began AND w.step > 0 AND v_pivot = 1::bigint << w.step - 1;
    SELECT y.was, y.session_id INTO v_was, v_session FROM pawl.job_withdraw(p_ns, w.job, 'its saga compensates') y;
    jobs := jobs + 1;
    IF v_was = 'running' AND v_session <> ALL (sessions) THEN
      sessions := sessions || v_session;
    END IF;
    CONTINUE WHEN v_was NOT IN ('scheduled', 'retrying', 'available');
    IF w.unit IS NOT NULL THEN
      u_steps := u_steps || w.step;
      u_units := u_units || w.unit;
    ELSIF w.step > 0 THEN
      v_steps := v_steps || w.step;
      v_whats := v_whats || CASE WHEN v_began THEN 'exhausted' ELSE 'withdrawn' END::pawl.saga_what;
      v_details := v_details || json_build_object('error', c_error);
    END IF;
  END LOOP;
  SELECT v_steps || array_agg(x.step), v_whats || array_agg('units'::pawl.saga_what), v_details || array_agg(x.detail) INTO v_steps, v_whats, v_details
    FROM (
      SELECT u.step, json_build_object('over', count(*), 'units', range_agg(int4range(u.unit, u.unit + 1))::text, 'failed', json_agg(u.unit ORDER BY u.unit), 'error', c_error) AS detail
      FROM ROWS FROM (unnest(u_steps), unnest(u_units)) u(step, unit) GROUP BY u.step) x;
  IF cardinality(v_steps) > 0 THEN
    SELECT a.queues, a.ended INTO queues, ended FROM pawl.saga_apply(p_ns, array_fill(p_saga, ARRAY[cardinality(v_steps)]), v_steps, v_whats, v_details) a;
  END IF;
  -- Last, since who has the saga may be asking anew: that stays.
  IF more THEN
    UPDATE pawl.saga_timer y SET seen = v_last WHERE y.ns = p_ns AND y.saga_id = p_saga AND y.step = -1 AND y.at = v_at;
  ELSE
    DELETE FROM pawl.saga_timer y WHERE y.ns = p_ns AND y.saga_id = p_saga AND y.step = -1 AND y.at = v_at;
  END IF;
END $$;
-- +goose StatementEnd

-- The proof that no saga is forgotten: looks at up to p_limit sagas behind p_after for one that has not ended and has nothing to wait for: no job, its own or a unit's, that can still end, no timer, no signal to
-- come, no child that goes on. What it waited for counts as exhausted, since nobody knows what became of it, and the saga is named. last: where to go on, NULL: the round is over. At most one saga is locked, and
-- put right, by a call: who has several takes them in the order of their roots.
-- +goose StatementBegin
CREATE FUNCTION pawl.sweep_sagas_forgotten(p_ns smallint, p_after bigint, p_limit int, OUT last bigint, OUT forgotten text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_custom_plan SET lock_timeout = '5s' AS $$
DECLARE
  x       record;
  s       pawl.saga_event;
  v_step  smallint;
  v_n     int := 0;
BEGIN
  PERFORM pawl.require_read_committed();
  forgotten := '{}';
  FOR x IN SELECT y.id, y.key, y.root_id, d.types FROM pawl.saga y JOIN pawl.saga_definition d ON d.ns = p_ns AND d.id = y.definition_id WHERE y.ns = p_ns AND y.id > p_after ORDER BY y.id LIMIT p_limit LOOP
    v_n := v_n + 1;
    last := x.id;
    SELECT y.* INTO s FROM pawl.saga_now(p_ns, x.id) y;
    CONTINUE WHEN pawl.saga_over(s.state) OR pawl.saga_lives(s, x.types);
    PERFORM pg_advisory_xact_lock(pawl.saga_lock_key(x.root_id));
    SELECT y.* INTO s FROM pawl.saga_now(p_ns, x.id) y;
    IF pawl.saga_over(s.state) OR pawl.saga_lives(s, x.types) THEN
      RETURN;
    END IF;
    forgotten := ARRAY[x.key];
    FOR i IN 1 .. cardinality(x.types) LOOP
      IF s.undoing & ~s.undone & (1::bigint << i - 1) <> 0 THEN
        PERFORM pawl.saga_apply(p_ns, ARRAY[x.id], ARRAY[i::smallint], ARRAY['undo_exhausted'::pawl.saga_what], ARRAY['{"error":"its job is gone"}'::json], 'sweep');
      ELSIF s.lined & ~(s.ok | s.refused | s.unknown) & (1::bigint << i - 1) <> 0 THEN
        PERFORM pawl.saga_apply(p_ns, ARRAY[x.id], ARRAY[i::smallint], ARRAY['exhausted'::pawl.saga_what], ARRAY['{"error":"its job is gone"}'::json], 'sweep');
      END IF;
    END LOOP;
    RETURN;
  END LOOP;
  IF v_n < p_limit THEN
    last := NULL;
  END IF;
END $$;
-- +goose StatementEnd

-- Whether something can still happen to a saga that has not ended. Of units it looks at those of which the saga has not heard, the last ones first, since they are claimed last, and no further than to one that can end.
-- +goose StatementBegin
CREATE FUNCTION pawl.saga_lives(s pawl.saga_event, p_types text[]) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
  v_open bigint := s.lined & ~(s.ok | s.refused | s.unknown);
  v_bit  bigint;
  v_told int4multirange;
  e      record;
BEGIN
  IF s.stuck <> 0 OR EXISTS (SELECT FROM pawl.saga_timer y WHERE y.ns = s.ns AND y.saga_id = s.saga_id AND y.step <> 0) THEN
    RETURN true;
  END IF;
  FOR i IN 1 .. cardinality(p_types) LOOP
    v_bit := 1::bigint << i - 1;
    CONTINUE WHEN v_open & v_bit = 0;
    IF p_types[i] = 'signal' THEN
      RETURN true;
    ELSIF s.expanded & v_bit = 0 THEN
      CONTINUE;
    ELSIF p_types[i] = 'child' THEN
      IF EXISTS (SELECT FROM pawl.saga y CROSS JOIN LATERAL pawl.saga_now(y.ns, y.id) n WHERE y.ns = s.ns AND y.parent_id = s.saga_id AND y.parent_step = i AND NOT pawl.saga_over(n.state)) THEN
        RETURN true;
      END IF;
    ELSE
      SELECT y.seq, y.jobs[1] AS first INTO e FROM pawl.saga_event y WHERE y.ns = s.ns AND y.saga_id = s.saga_id AND y.step = i AND y.what IN ('expanded', 'retried') ORDER BY y.seq DESC LIMIT 1;
      SELECT coalesce(range_agg(r), '{}') INTO v_told FROM pawl.saga_event y CROSS JOIN LATERAL unnest((y.detail->>'units')::int4multirange) r
        WHERE y.ns = s.ns AND y.saga_id = s.saga_id AND y.seq > e.seq AND y.step = i AND y.what = 'units';
      IF EXISTS (SELECT FROM (SELECT u.job FROM pawl.saga_units_of(s, v_bit, e.first - 1) u WHERE NOT v_told @> u.unit ORDER BY u.job DESC OFFSET 0) u WHERE NOT pawl.job_finished(s.ns, u.job)) THEN
        RETURN true;
      END IF;
    END IF;
  END LOOP;
  RETURN EXISTS (
    SELECT FROM pawl.saga_event y CROSS JOIN LATERAL ROWS FROM (unnest(y.jobs), unnest(y.job_steps)) u(job, step)
    WHERE y.ns = s.ns AND y.saga_id = s.saga_id
      AND (u.step > 0 AND v_open & ~s.expanded & (1::bigint << u.step - 1) <> 0 OR u.step < 0 AND s.undoing & ~s.undone & (1::bigint << -u.step - 1) <> 0)
      AND NOT pawl.job_finished(s.ns, u.job));
END $$;
-- +goose StatementEnd

-- Removes up to p_limit sagas, with their histories, that ended longer ago than p_keep, looking at those behind p_after. last NULL: the round is over.
-- +goose StatementBegin
CREATE FUNCTION pawl.sweep_sagas_old(p_ns smallint, p_keep interval, p_after bigint, p_limit int, OUT removed int, OUT last bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_custom_plan SET lock_timeout = '5s' AS $$
DECLARE
  x   record;
  v_n int := 0;
BEGIN
  removed := 0;
  FOR x IN SELECT y.id, y.root_id, y.started_at FROM pawl.saga y WHERE y.ns = p_ns AND y.id > p_after ORDER BY y.id LIMIT p_limit LOOP
    EXIT WHEN x.started_at > clock_timestamp() - p_keep;  -- those behind it began later, but for a few
    v_n := v_n + 1;
    last := x.id;
    -- A part of a saga stays as long as the whole.
    CONTINUE WHEN NOT EXISTS (SELECT FROM pawl.saga_now(p_ns, x.id) e WHERE pawl.saga_over(e.state) AND e.at < clock_timestamp() - p_keep)
      OR x.root_id <> x.id AND NOT EXISTS (SELECT FROM pawl.saga_now(p_ns, x.root_id) e WHERE pawl.saga_over(e.state));
    DELETE FROM pawl.saga_event e WHERE e.ns = p_ns AND e.saga_id = x.id;
    DELETE FROM pawl.saga_timer e WHERE e.ns = p_ns AND e.saga_id = x.id;
    DELETE FROM pawl.saga_hold e WHERE -e.ns = -p_ns AND e.saga_id = x.id;
    DELETE FROM pawl.saga e WHERE e.ns = p_ns AND e.id = x.id;
    removed := removed + 1;
  END LOOP;
  IF v_n < p_limit THEN
    last := NULL;
  END IF;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pawl.sweep_sagas_old, pawl.saga_lives, pawl.sweep_sagas_forgotten, pawl.saga_withdraw, pawl.saga_units_of, pawl.sweep_sagas, pawl.saga_hold, pawl.saga_send, pawl.saga_act, pawl.saga_open, pawl.saga_same,
  pawl.saga_start, pawl.saga_endings, pawl.saga_apply, pawl.saga_units, pawl.saga_output, pawl.saga_alert, pawl.saga_register, pawl.saga_child, pawl.saga_now, pawl.saga_over, pawl.saga_args, pawl.saga_lock_key;
DROP TABLE pawl.saga_hold, pawl.saga_timer, pawl.saga_event, pawl.saga, pawl.saga_definition;
DROP TYPE pawl.saga_what, pawl.saga_state;
DROP SEQUENCE pawl.saga_id;
