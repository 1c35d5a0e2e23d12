-- +goose Up

-- One draw an enqueue; its jobs have the ids draw * 1024 and following. Contiguous ids make a batch one row of the line and its bodies one range of
-- the index, and a draw for a whole batch needs no lock. 2^53 draws fit.
CREATE SEQUENCE pawl.job_id;

-- A job's body, never updated. xid and epoch are those of its first place in line (NULL: it was scheduled first).
-- The policy (attempts, timeout, backoff; NULL: the default) is on the row: whoever rescues a job needs no code of its kind. saga_*: it is a step of a saga (below 0: the step's compensation), or a unit of it.
CREATE TABLE pawl.job (
  id             bigint      NOT NULL,
  created_at     timestamptz NOT NULL,
  xid            xid8,
  queue_id       int         NOT NULL,
  ns             smallint    NOT NULL,
  priority       smallint    NOT NULL,
  epoch          smallint    NOT NULL,
  max_attempts   smallint    NOT NULL,
  timeout_ms     int,
  backoff_ms     int,
  backoff_ms_max int,
  kind           text        NOT NULL,
  enqueued_by    text        NOT NULL,
  args           json        NOT NULL,
  headers        json,
  dedupe_key     text,
  saga_id        bigint,
  saga_step      smallint,
  saga_unit      int,
  PRIMARY KEY (ns, id)
) PARTITION BY RANGE (id);

-- A place in line: the jobs job_id … job_id + jobs - 1, runnable from the commit of xid on, in the order (epoch, xid, job_id).
-- again: not the jobs' first place (retry, snooze, rescue, due); such a row holds one job.
CREATE TABLE pawl.ready (
  xid      xid8     NOT NULL,
  job_id   bigint   NOT NULL,
  jobs     int      NOT NULL,
  queue_id int      NOT NULL,
  ns       smallint NOT NULL,
  priority smallint NOT NULL,
  epoch    smallint NOT NULL,
  attempt  smallint NOT NULL,
  again    boolean  NOT NULL,
  PRIMARY KEY (ns, queue_id, priority, epoch, xid, job_id)
) PARTITION BY RANGE (xid);
CREATE INDEX ready_again ON pawl.ready (ns, job_id) WHERE again;

-- Jobs that wait for their time: run_at in the future, a retry, a snooze. Moved to the line by the sweep "due".
CREATE TABLE pawl.scheduled (
  run_at   timestamptz NOT NULL,
  job_id   bigint      NOT NULL,
  queue_id int         NOT NULL,
  ns       smallint    NOT NULL,
  priority smallint    NOT NULL,
  attempt  smallint    NOT NULL,
  PRIMARY KEY (ns, job_id)
);
-- By -ns and -queue_id: other looks must not be able to use them, which the planner would among few rows.
CREATE INDEX scheduled_due ON pawl.scheduled ((-ns), run_at, job_id);
CREATE INDEX scheduled_queue ON pawl.scheduled ((-queue_id));

-- A claim: this session took these jobs (runs of ids, each with its attempt), and the line stands here since.
-- Everything up to (cursor_epoch, cursor_xid, cursor_id), and cursor_taken jobs of that row, has been taken, but for late_xid: the
-- transactions that were still running below the cursor, each with how far its rows have been taken.
-- A job of a claim is named by its ordinal, counted from 0 over the runs.
CREATE TABLE pawl.claim (
  id           bigint      GENERATED ALWAYS AS IDENTITY,
  nonce        bigint      NOT NULL,
  session_id   bigint      NOT NULL,
  claimed_at   timestamptz NOT NULL,
  cursor_xid   xid8        NOT NULL,
  cursor_id    bigint      NOT NULL,
  cursor_taken int         NOT NULL,
  jobs         int         NOT NULL,
  queue_id     int         NOT NULL,
  ns           smallint    NOT NULL,
  priority     smallint    NOT NULL,
  epoch        smallint    NOT NULL,
  cursor_epoch smallint    NOT NULL,
  late_xid     xid8[],
  late_id      bigint[],
  late_taken   int[],
  job_ids      bigint[]    NOT NULL,
  job_counts   int[]       NOT NULL,
  attempts     smallint[]  NOT NULL,
  PRIMARY KEY (ns, id)
) PARTITION BY RANGE (id);
-- By -id: ordered by id itself, the newest claim of a line could also be sought through the primary key, and with some statistics it is, past
-- every claim of the other lines. And by -ns: who seeks a claim by its primary key could else take one of these, while the table is new and
-- the planner takes all three for equally short.
CREATE INDEX claim_line ON pawl.claim ((-ns), queue_id, priority, epoch, (-id));
CREATE INDEX claim_session ON pawl.claim ((-ns), session_id, (-id));

CREATE TYPE pawl.outcome AS ENUM (
  'succeeded',  -- final
  'failed',     -- goes again by its backoff, one attempt on
  'snoozed',    -- goes again after a time of its choice, no attempt used
  'returned',   -- handed back unrun, no attempt used
  'lost',       -- its session ended or its handler was given up: goes again, one attempt on
  'discarded',  -- final: given up, attempts used up or by the handler's word
  'cancelled'   -- final
);

-- How attempts ended: jobs holds the ordinals. Whatever has a receipt is over: a second ending finds it and counts as lost.
CREATE TABLE pawl.receipt (
  claim_id bigint         NOT NULL,
  id       bigint         GENERATED ALWAYS AS IDENTITY,
  at       timestamptz    NOT NULL,
  ns       smallint       NOT NULL,
  outcome  pawl.outcome   NOT NULL,
  jobs     int4multirange NOT NULL,
  detail   json,
  PRIMARY KEY (ns, claim_id, id),
  CONSTRAINT receipt_jobs CHECK (NOT isempty(jobs))
) PARTITION BY RANGE (claim_id);
CREATE INDEX receipt_trouble ON pawl.receipt (ns, outcome, at) WHERE outcome IN ('discarded', 'cancelled', 'lost');

-- What a handler returned, for whoever awaits it.
CREATE TABLE pawl.result (
  ns     smallint    NOT NULL,
  job_id bigint      NOT NULL,
  at     timestamptz NOT NULL,
  value  json        NOT NULL,
  PRIMARY KEY (ns, job_id)
) PARTITION BY RANGE (job_id);

-- One job a key, until it is finished (until IS NULL) or until a time. A row whose time is over counts for nothing.
CREATE TABLE pawl.dedupe (
  ns     smallint NOT NULL,
  kind   text     NOT NULL,
  key    text     NOT NULL,
  job_id bigint   NOT NULL,
  until  timestamptz,
  PRIMARY KEY (ns, kind, key),
  CONSTRAINT dedupe_key_length CHECK (length(key) BETWEEN 1 AND 512)
);

-- A cancelled attempt. Of a waiting job it is the end (xid, ready_id: its place in line, which claims pass over);
-- of a running one (claim_id, session_id) it is a request, and the receipt tells what became of it.
CREATE TABLE pawl.cancellation (
  ns         smallint    NOT NULL,
  job_id     bigint      NOT NULL,
  attempt    smallint    NOT NULL,
  at         timestamptz NOT NULL,
  queue_id   int         NOT NULL,
  priority   smallint    NOT NULL,
  epoch      smallint,
  xid        xid8,
  ready_id   bigint,
  claim_id   bigint,
  ordinal    int,
  session_id bigint,
  reason     text        NOT NULL,
  PRIMARY KEY (ns, job_id, attempt),
  CONSTRAINT cancellation_reason_length CHECK (length(reason) <= 1024)
);
CREATE INDEX cancellation_line ON pawl.cancellation ((-ns), queue_id, priority, xid) WHERE xid IS NOT NULL;  -- by -ns as above
CREATE INDEX cancellation_session ON pawl.cancellation (ns, session_id, claim_id) WHERE session_id IS NOT NULL;

-- +goose Down
DROP TABLE pawl.cancellation, pawl.dedupe, pawl.result, pawl.receipt, pawl.claim, pawl.scheduled, pawl.ready, pawl.job;
DROP TYPE pawl.outcome;
DROP SEQUENCE pawl.job_id;
