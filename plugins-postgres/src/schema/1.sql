-- Key-value.

CREATE TABLE washlet.bucket (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE
);

-- One for all keys, so that no key ever has a version twice.
CREATE SEQUENCE washlet.version;

CREATE TABLE washlet.entry (
    bucket bigint NOT NULL REFERENCES washlet.bucket ON DELETE CASCADE,
    -- UTF-8, as bytes: ordered by them, whatever the database's encoding and collation.
    key bytea NOT NULL,
    value bytea NOT NULL,
    version bigint NOT NULL,
    expires_at timestamptz,
    PRIMARY KEY (bucket, key)
);

CREATE INDEX entry_expiry ON washlet.entry (expires_at) WHERE expires_at IS NOT NULL;

-- Blobs.

CREATE TABLE washlet.container (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- What an object holds, or held, or will hold. It is an object's while it does not expire; the chunks of
-- one that has expired are deleted by whoever writes next.
CREATE TABLE washlet.content (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    expires_at timestamptz
);

CREATE INDEX content_expiry ON washlet.content (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE washlet.chunk (
    content bigint NOT NULL,
    -- The place of its first byte in the content.
    at bigint NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (content, at)
);

-- Not compressed, so that a part of a chunk is read alone.
ALTER TABLE washlet.chunk ALTER COLUMN bytes SET STORAGE EXTERNAL;

CREATE TABLE washlet.object (
    container bigint NOT NULL REFERENCES washlet.container ON DELETE CASCADE,
    name bytea NOT NULL,
    content bigint NOT NULL REFERENCES washlet.content,
    size bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (container, name)
);

-- For the reference from object to content, which is checked when a content is deleted.
CREATE INDEX object_content ON washlet.object (content);

CREATE FUNCTION washlet.expire_content() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE washlet.content SET expires_at = now() WHERE id = OLD.content;
    RETURN NULL;
END
$$;

CREATE TRIGGER expire_content AFTER DELETE OR UPDATE OF content ON washlet.object
    FOR EACH ROW EXECUTE FUNCTION washlet.expire_content();
