-- Messages: each group has a queue, and each queue a copy of every message that its group is to handle.

CREATE TABLE washlet.queue (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Whose subjects these are, and the group's name; in UTF-8, whatever the database's encoding.
    scope bytea NOT NULL,
    name bytea NOT NULL,
    -- Regular expressions of the subjects it hears; none in the queue of dead letters that nobody hears.
    patterns text[] NOT NULL,
    -- When a member was there last, and how long the queue stays without one; NULL for ever.
    seen_at timestamptz NOT NULL DEFAULT now(),
    forget_after interval,
    UNIQUE (scope, name)
);

CREATE TABLE washlet.message (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue bigint NOT NULL REFERENCES washlet.queue ON DELETE CASCADE,
    -- Subjects are ASCII, all else as % and two hex digits.
    subject text COLLATE "C" NOT NULL,
    reply_to text COLLATE "C",
    body bytea NOT NULL,
    sent_at timestamptz NOT NULL DEFAULT now(),
    -- When it may be delivered: now, after a pause, or when who has it shows no sign of life.
    ready_at timestamptz NOT NULL DEFAULT now(),
    deliveries integer NOT NULL DEFAULT 0,
    -- Another one with each delivery: who has an old one has the message no more.
    claim bigint NOT NULL DEFAULT 0,
    -- Of a dead letter: why, what it was, and whose.
    reason bytea,
    died_subject text COLLATE "C",
    died_deliveries integer,
    died_group bytea
);

CREATE INDEX message_ready ON washlet.message (queue, ready_at, id);
