-- +goose Up
CREATE SCHEMA IF NOT EXISTS pawl;
COMMENT ON SCHEMA pawl IS 'Pawl: jobs, locks and transactions. Its tables are written by its functions only.';

-- A namespace is a complete Pawl of its own: queues, sessions and keys are told apart by it.
CREATE TABLE pawl.namespace (
  ns   smallint PRIMARY KEY,
  name text     NOT NULL UNIQUE,
  CONSTRAINT namespace_name_length CHECK (length(name) BETWEEN 1 AND 128)
);
INSERT INTO pawl.namespace (ns, name) VALUES (1, 'default');

CREATE TABLE pawl.queue (
  ns                smallint    NOT NULL REFERENCES pawl.namespace,
  id                int         GENERATED ALWAYS AS IDENTITY,
  name              text        NOT NULL,
  paused_at         timestamptz,
  payload_bytes_max int         NOT NULL DEFAULT 1048576,
  created_at        timestamptz NOT NULL,
  PRIMARY KEY (ns, id),
  UNIQUE (ns, name),
  CONSTRAINT queue_name_length CHECK (length(name) BETWEEN 1 AND 128),
  CONSTRAINT queue_payload_bytes_max CHECK (payload_bytes_max BETWEEN 1 AND 67108864)
);

-- A line is the order of the runnable jobs of one queue and priority. Its position is the newest claim's of the same epoch;
-- while there is none, base_* counts. Updated by a rebase (and by sweeps that remove old claims), never by a claim.
CREATE TABLE pawl.line (
  ns              smallint NOT NULL,
  queue_id        int      NOT NULL,
  priority        smallint NOT NULL,
  epoch           smallint NOT NULL DEFAULT 0,
  cluster         bigint   NOT NULL,
  claim_floor     bigint   NOT NULL DEFAULT 0,
  base_epoch      smallint NOT NULL DEFAULT 0,
  base_xid        xid8     NOT NULL DEFAULT '0',
  base_id         bigint   NOT NULL DEFAULT 0,
  base_taken      int      NOT NULL DEFAULT 0,
  base_late_xid   xid8[],
  base_late_id    bigint[],
  base_late_taken int[],
  PRIMARY KEY (ns, queue_id, priority),
  FOREIGN KEY (ns, queue_id) REFERENCES pawl.queue,
  CONSTRAINT line_priority CHECK (priority BETWEEN 1 AND 4),
  CONSTRAINT line_epoch CHECK (base_epoch <= epoch)
);

-- The number of the namespace of that name, made if there is none.
-- +goose StatementBegin
CREATE FUNCTION pawl.namespace_create(p_name text) RETURNS smallint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  LOCK TABLE pawl.namespace IN SHARE ROW EXCLUSIVE MODE;  -- two new names would get one number
  INSERT INTO pawl.namespace (ns, name) SELECT max(n.ns) + 1, p_name FROM pawl.namespace n ON CONFLICT (name) DO NOTHING;
  RETURN (SELECT n.ns FROM pawl.namespace n WHERE n.name = p_name);
END $$;
-- +goose StatementEnd

-- The cluster in whose xids a cursor counts. Looked up once in a backend's life (9 µs), then kept in a setting of its session.
-- +goose StatementBegin
CREATE FUNCTION pawl.cluster() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_cluster bigint;
BEGIN
  SELECT system_identifier INTO v_cluster FROM pg_control_system();
  PERFORM set_config('pawl.cluster', v_cluster::text, false);
  RETURN v_cluster;
END $$;
-- +goose StatementEnd

-- Whether this is the cluster of that identifier. Postgres puts it in place of its call.
-- +goose StatementBegin
CREATE FUNCTION pawl.is_home(p_cluster bigint) RETURNS boolean LANGUAGE sql BEGIN ATOMIC
  SELECT p_cluster = coalesce(nullif(current_setting('pawl.cluster', true), '')::bigint, pawl.cluster());
END;
-- +goose StatementEnd

-- The queue of that name and its line, if both exist. Postgres puts it in place of its call.
-- +goose StatementBegin
CREATE FUNCTION pawl.line_of(p_ns smallint, p_queue text, p_priority smallint)
RETURNS TABLE (queue_id int, payload_bytes_max int, epoch smallint, cluster bigint) LANGUAGE sql STABLE BEGIN ATOMIC
  SELECT q.id, q.payload_bytes_max, l.epoch, l.cluster
    FROM pawl.queue q
    CROSS JOIN LATERAL (
      SELECT x.epoch, x.cluster FROM pawl.line x WHERE x.ns = p_ns AND x.queue_id = q.id AND x.priority = p_priority
      OFFSET 0) l  -- else a plan made while there are few lines reads all of them
    WHERE q.ns = p_ns AND q.name = p_queue;
END;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE FUNCTION pawl.raise_moved(p_queue text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RAISE EXCEPTION 'pawl: queue % was last used in another database cluster', p_queue
    USING ERRCODE = 'PW003', HINT = 'After a restore, a copy or pg_upgrade run "pawl doctor --rebase" once, then try again.';
END $$;
-- +goose StatementEnd

-- The queue and its line, created on first use. Enqueues and claims look first and come here only when they find none.
-- +goose StatementBegin
CREATE FUNCTION pawl.line_create(p_ns smallint, p_queue text, p_priority smallint, OUT queue_id int, OUT epoch smallint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF p_queue IS NULL OR length(p_queue) NOT BETWEEN 1 AND 128 THEN
    RAISE EXCEPTION 'pawl: a queue''s name has 1 to 128 characters, not %', coalesce(length(p_queue), 0) USING ERRCODE = '22023';
  END IF;
  IF p_priority IS NULL OR p_priority NOT BETWEEN 1 AND 4 THEN
    RAISE EXCEPTION 'pawl: priority % is outside 1 (first) to 4 (last)', p_priority USING ERRCODE = '22023';
  END IF;
  IF NOT EXISTS (SELECT FROM pawl.namespace n WHERE n.ns = p_ns) THEN
    RAISE EXCEPTION 'pawl: namespace % does not exist', p_ns USING ERRCODE = '22023', HINT = 'SELECT pawl.namespace_create(name) makes one.';
  END IF;
  -- Looked for first: ON CONFLICT would use up an id at each call.
  IF NOT EXISTS (SELECT FROM pawl.queue q WHERE q.ns = p_ns AND q.name = p_queue) THEN
    INSERT INTO pawl.queue (ns, name, created_at) VALUES (p_ns, p_queue, now()) ON CONFLICT DO NOTHING;
  END IF;
  SELECT q.id INTO queue_id FROM pawl.queue q WHERE q.ns = p_ns AND q.name = p_queue;
  IF queue_id IS NULL THEN
    RAISE EXCEPTION 'pawl: queue % was created by a transaction that this one cannot see', p_queue
      USING ERRCODE = '40001', HINT = 'Try again in a new transaction.';
  END IF;
  INSERT INTO pawl.line (ns, queue_id, priority, cluster)
    VALUES (p_ns, line_create.queue_id, p_priority, coalesce(nullif(current_setting('pawl.cluster', true), '')::bigint, pawl.cluster()))
    ON CONFLICT DO NOTHING;
  SELECT l.epoch INTO epoch FROM pawl.line l WHERE l.ns = p_ns AND l.queue_id = line_create.queue_id AND l.priority = p_priority;
  IF epoch IS NULL THEN
    RAISE EXCEPTION 'pawl: queue % was created by a transaction that this one cannot see', p_queue
      USING ERRCODE = '40001', HINT = 'Try again in a new transaction.';
  END IF;
END $$;
-- +goose StatementEnd

-- Pauses or resumes a queue: workers claim nothing from it while it is paused; what runs goes on. False: there is no such queue.
-- +goose StatementBegin
CREATE FUNCTION pawl.queue_pause(p_ns smallint, p_queue text, p_paused boolean) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE pawl.queue q SET paused_at = CASE WHEN p_paused THEN coalesce(q.paused_at, now()) END
    WHERE q.ns = p_ns AND q.name = p_queue;
  RETURN FOUND;
END $$;
-- +goose StatementEnd

-- +goose Down
DROP FUNCTION pawl.queue_pause, pawl.line_create, pawl.raise_moved, pawl.line_of, pawl.is_home, pawl.cluster, pawl.namespace_create;
DROP TABLE pawl.line, pawl.queue, pawl.namespace;
