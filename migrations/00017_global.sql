-- +goose Up

-- What is raised where the database was restored: nothing is presumed of transactions that began before. One row.
CREATE TABLE pawl.global_home (
  incarnation int     NOT NULL,
  singleton   boolean PRIMARY KEY DEFAULT true CHECK (singleton)
);
INSERT INTO pawl.global_home (incarnation) VALUES (0);

-- The decisions of global transactions over several databases: one row each, appended by who decides first and never changed. No row: not committed (presumed abort). id: a UUIDv7.
CREATE TABLE pawl.global_decision (
  ns           smallint    NOT NULL,
  id           uuid        NOT NULL,
  decided_at   timestamptz NOT NULL,
  committed    boolean     NOT NULL,
  branch       text,                  -- how its branches are named, before the participant's name; NULL where nothing was to commit
  participants text[]      NOT NULL,  -- that had prepared
  decided_by   text        NOT NULL,
  reason       text,                  -- of an abort, or an operator's
  PRIMARY KEY (ns, id)
);
CREATE INDEX global_decision_at ON pawl.global_decision ((-ns), decided_at, id);

-- Global transactions that were committed at all their participants.
CREATE TABLE pawl.global_end (
  ns       smallint    NOT NULL,
  id       uuid        NOT NULL,
  ended_at timestamptz NOT NULL,
  PRIMARY KEY (ns, id)
);

CREATE TYPE pawl.doubt AS ENUM (
  'undecided',    -- prepared there, and nothing may be presumed: it began before the coordinator's database was restored
  'unfinished',   -- decided, and the participant cannot be reached or refuses to finish it
  'mixed'         -- a participant did the opposite of what was decided, or lost it
);

-- What a person must see of a branch: that of a global transaction at one participant. A row goes when the branch is settled; a mixed one stays, with who has dealt with it.
CREATE TABLE pawl.global_doubt (
  ns          smallint    NOT NULL,
  id          uuid        NOT NULL,
  participant text        NOT NULL,
  branch      text        NOT NULL,  -- its name there
  what        pawl.doubt  NOT NULL,
  first_at    timestamptz NOT NULL,
  last_at     timestamptz NOT NULL,
  detail      text        NOT NULL,
  resolved_at timestamptz,
  resolved_by text,
  reason      text,
  PRIMARY KEY (ns, id, participant)
);

-- The participants that coordinators were given, as they stand.
CREATE TABLE pawl.global_participant (
  ns       smallint    NOT NULL,
  name     text        NOT NULL,
  kind     text        NOT NULL,
  address  text        NOT NULL,  -- without secrets
  seen_at  timestamptz,           -- when it was last reached,
  tried_at timestamptz NOT NULL,  -- and when that was last tried
  prepared int         NOT NULL,  -- branches of this coordinator's that it has prepared
  error    text,
  PRIMARY KEY (ns, name)
);

-- Where and when a global transaction begins: its branches tell the database (cluster and oid, in one number), the timeline and the incarnation, so that nothing is presumed of those from elsewhere or from before a restore. lsn: how far the log is on disk,
-- which a crash does not set back.
-- +goose StatementBegin
CREATE FUNCTION pawl.global_here(OUT home text, OUT at timestamptz, OUT lsn pg_lsn)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  home := lpad(to_hex(hashint8extended(pawl.cluster(), (SELECT d.oid::bigint FROM pg_database d WHERE d.datname = current_database()))), 16, '0') || '.' || to_hex(pawl.timeline()) || '.' || to_hex((SELECT h.incarnation FROM pawl.global_home h));
  at := clock_timestamp();
  lsn := pg_current_wal_flush_lsn();
END $$;
-- +goose StatementEnd

-- Decides that global transactions commit, each with the names of its branches and the participants that have prepared (their names with commas between). committed: whether it is so: who has decided before has decided, and past its deadline
-- a transaction that nobody has decided is aborted. Commits synchronously. Calling it again changes nothing.
-- +goose StatementBegin
CREATE FUNCTION pawl.global_decide(p_ns smallint, p_ids uuid[], p_deadlines timestamptz[], p_branches text[], p_participants text[], p_by text, OUT committed boolean[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
  v_ours uuid[];
BEGIN
  IF current_setting('synchronous_commit') = 'off' THEN
    PERFORM set_config('synchronous_commit', 'local', true);
  END IF;
  WITH n AS (
    INSERT INTO pawl.global_decision (ns, id, decided_at, committed, branch, participants, decided_by)
      SELECT p_ns, u.id, clock_timestamp(), true, u.branch, string_to_array(u.participants, ','), p_by
      FROM ROWS FROM (unnest(p_ids), unnest(p_deadlines), unnest(p_branches), unnest(p_participants)) u(id, deadline, branch, participants)
      WHERE u.deadline > clock_timestamp() ORDER BY u.id
      ON CONFLICT DO NOTHING RETURNING id)
    SELECT array_agg(n.id) INTO v_ours FROM n;
  IF cardinality(v_ours) = cardinality(p_ids) THEN
    committed := array_fill(true, ARRAY[cardinality(p_ids)]);
  ELSE
    PERFORM pawl.global_abort(p_ns, ARRAY(SELECT u FROM unnest(p_ids) u WHERE v_ours IS NULL OR u <> ALL (v_ours)), p_by, 'its deadline had passed');
    committed := ARRAY(SELECT d.committed FROM unnest(p_ids) WITH ORDINALITY u(id, i) CROSS JOIN LATERAL (
      SELECT x.committed FROM pawl.global_decision x WHERE x.ns = p_ns AND x.id = u.id OFFSET 0) d ORDER BY u.i);
  END IF;
END $$;
-- +goose StatementEnd

-- Decides in the transaction that does the coordinator's own part that it commits; raises PW030 if it must not, so that this is undone too.
-- +goose StatementBegin
CREATE FUNCTION pawl.global_decide_here(p_ns smallint, p_id uuid, p_deadline timestamptz, p_branch text, p_participants text, p_by text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF NOT (pawl.global_decide(p_ns, ARRAY[p_id], ARRAY[p_deadline], ARRAY[p_branch], ARRAY[p_participants], p_by))[1] THEN
    RAISE EXCEPTION 'pawl: global transaction % was aborted', p_id USING ERRCODE = 'PW030';
  END IF;
END $$;
-- +goose StatementEnd

-- Decides that global transactions are aborted, unless that is decided already. Commits synchronously.
-- +goose StatementBegin
CREATE FUNCTION pawl.global_abort(p_ns smallint, p_ids uuid[], p_by text, p_reason text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF current_setting('synchronous_commit') = 'off' THEN
    PERFORM set_config('synchronous_commit', 'local', true);
  END IF;
  INSERT INTO pawl.global_decision (ns, id, decided_at, committed, participants, decided_by, reason)
    SELECT p_ns, u, clock_timestamp(), false, '{}', p_by, p_reason FROM unnest(p_ids) u ORDER BY u ON CONFLICT DO NOTHING;
END $$;
-- +goose StatementEnd

-- Decides that a global transaction which nobody has decided is aborted, if its home (p_home) is here still, and gives what is decided. NULL: nothing, and nothing may be presumed. Commits synchronously. Who is deciding right now
-- is waited for for 1 s; then 55P03.
-- +goose StatementBegin
CREATE FUNCTION pawl.global_presume(p_ns smallint, p_id uuid, p_home text, p_by text, p_reason text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $$
BEGIN
  IF p_home = (SELECT h.home FROM pawl.global_here() h) THEN
    PERFORM pawl.global_abort(p_ns, ARRAY[p_id], p_by, p_reason);
  END IF;
  RETURN (SELECT d.committed FROM pawl.global_decision d WHERE d.ns = p_ns AND d.id = p_id);
END $$;
-- +goose StatementEnd

-- Notes that global transactions are committed at all their participants.
-- +goose StatementBegin
CREATE FUNCTION pawl.global_ended(p_ns smallint, p_ids uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF p_ids <> '{}' THEN
    INSERT INTO pawl.global_end (ns, id, ended_at) SELECT p_ns, u, clock_timestamp() FROM unnest(p_ids) u ORDER BY u ON CONFLICT DO NOTHING;
  END IF;
END $$;
-- +goose StatementEnd

-- Committed global transactions, decided longer ago than p_grace, that are not noted as committed everywhere: of the p_limit decisions behind (p_after, p_after_id). last NULL: the round is over. open_at: when the
-- first was decided that is not done, or too young.
-- +goose StatementBegin
CREATE FUNCTION pawl.global_unfinished(p_ns smallint, p_after timestamptz, p_after_id uuid, p_grace interval, p_limit int,
  OUT ids uuid[], OUT branches text[], OUT participants text[], OUT last timestamptz, OUT last_id uuid, OUT open_at timestamptz)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_custom_plan AS $$
DECLARE
  d   record;
  v_n int := 0;
BEGIN
  ids := '{}';
  branches := '{}';
  participants := '{}';
  FOR d IN
    SELECT x.*, x.committed AND e.ended IS NULL AS open, x.decided_at > clock_timestamp() - p_grace AS young
    FROM (SELECT y.id, y.decided_at, y.branch, y.participants, y.committed FROM pawl.global_decision y
      WHERE -y.ns = -p_ns AND (y.decided_at, y.id) > (p_after, p_after_id) ORDER BY y.decided_at, y.id LIMIT p_limit) x
    LEFT JOIN LATERAL (SELECT true AS ended FROM pawl.global_end z WHERE z.ns = p_ns AND z.id = x.id OFFSET 0) e ON true  -- one by one: else a plan made while there are few reads all
    ORDER BY x.decided_at, x.id
  LOOP
    v_n := v_n + 1;
    IF d.open OR d.young THEN
      open_at := coalesce(open_at, d.decided_at);
    END IF;
    EXIT WHEN d.young;
    IF d.open THEN
      ids := ids || d.id;
      branches := branches || d.branch;
      participants := participants || array_to_string(d.participants, ',');
    END IF;
    last := d.decided_at;
    last_id := d.id;
  END LOOP;
  IF v_n < p_limit OR d.young THEN
    last := NULL;
    last_id := NULL;
  END IF;
END $$;
-- +goose StatementEnd

-- Removes, of the p_limit decisions behind (p_after, p_after_id) that are older than p_keep, those of transactions that were aborted or are committed everywhere, and that nobody must see to. last NULL: the round is over.
-- +goose StatementBegin
CREATE FUNCTION pawl.sweep_global_old(p_ns smallint, p_keep interval, p_after timestamptz, p_after_id uuid, p_limit int, OUT removed int, OUT last timestamptz, OUT last_id uuid)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_custom_plan SET lock_timeout = '5s' AS $$
DECLARE
  v_before timestamptz := clock_timestamp() - p_keep;
  d   record;
  v_n int := 0;
BEGIN
  removed := 0;
  FOR d IN
    SELECT x.id, x.decided_at, x.committed FROM pawl.global_decision x
    WHERE -x.ns = -p_ns AND (x.decided_at, x.id) > (p_after, p_after_id) AND x.decided_at < v_before ORDER BY x.decided_at, x.id LIMIT p_limit
  LOOP
    v_n := v_n + 1;
    last := d.decided_at;
    last_id := d.id;
    CONTINUE WHEN d.committed AND NOT EXISTS (SELECT FROM pawl.global_end e WHERE e.ns = p_ns AND e.id = d.id)
      OR EXISTS (SELECT FROM pawl.global_doubt q WHERE q.ns = p_ns AND q.id = d.id AND q.resolved_at IS NULL);
    DELETE FROM pawl.global_end e WHERE e.ns = p_ns AND e.id = d.id;
    DELETE FROM pawl.global_doubt q WHERE q.ns = p_ns AND q.id = d.id;
    DELETE FROM pawl.global_decision x WHERE x.ns = p_ns AND x.id = d.id;
    removed := removed + 1;
  END LOOP;
  IF v_n < p_limit THEN
    last := NULL;
    last_id := NULL;
  END IF;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pawl.sweep_global_old, pawl.global_unfinished, pawl.global_ended, pawl.global_decide_here, pawl.global_decide, pawl.global_presume, pawl.global_abort, pawl.global_here;
DROP TABLE pawl.global_participant, pawl.global_doubt, pawl.global_end, pawl.global_decision, pawl.global_home;
DROP TYPE pawl.doubt;
