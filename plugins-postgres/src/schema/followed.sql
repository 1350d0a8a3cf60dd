-- Buckets whose changes somebody looks for. Each change adds one, under a lock that is held until it is
-- committed: so the numbers are seen in their order, and no change is seen before its number.
CREATE TABLE washlet.followed (
    bucket bigint PRIMARY KEY REFERENCES washlet.bucket ON DELETE CASCADE,
    changes bigint NOT NULL DEFAULT 0
);

-- The number of each key's last change, for an hour.
CREATE TABLE washlet.changed (
    bucket bigint NOT NULL REFERENCES washlet.followed ON DELETE CASCADE,
    key bytea NOT NULL,
    number bigint NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (bucket, key)
);

CREATE INDEX changed_number ON washlet.changed (bucket, number);

CREATE FUNCTION washlet.count_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed_bucket bigint := coalesce(NEW.bucket, OLD.bucket);
    change bigint;
BEGIN
    UPDATE washlet.followed SET changes = changes + 1 WHERE bucket = changed_bucket
        RETURNING changes INTO change;
    IF FOUND THEN
        INSERT INTO washlet.changed (bucket, key, number)
            VALUES (changed_bucket, coalesce(NEW.key, OLD.key), change)
            ON CONFLICT (bucket, key) DO UPDATE SET number = excluded.number, changed_at = now();
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER count_change AFTER INSERT OR UPDATE OR DELETE ON washlet.entry
    FOR EACH ROW EXECUTE FUNCTION washlet.count_change();

-- For people: the value of a key of live configuration. The bucket is named as it is stored, NAMESPACE__BUCKET.
CREATE FUNCTION washlet.set_config(bucket_name text, entry_key text, entry_value text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF bucket_name !~ '^[A-Za-z0-9_-]{1,200}$' THEN
        RAISE EXCEPTION 'a bucket cannot be called "%"', bucket_name
            USING HINT = 'Within a namespace it is NAMESPACE__BUCKET, each of 1 to 200 letters, digits and hyphens.';
    END IF;
    IF octet_length(convert_to(entry_key, 'UTF8')) NOT BETWEEN 1 AND 1024 THEN
        RAISE EXCEPTION 'a key has 1 to 1024 bytes';
    END IF;
    IF octet_length(convert_to(entry_value, 'UTF8')) > 1040384 THEN
        RAISE EXCEPTION 'a value has at most 1040384 bytes';
    END IF;
    INSERT INTO washlet.bucket (name) VALUES (bucket_name) ON CONFLICT (name) DO NOTHING;
    INSERT INTO washlet.entry (bucket, key, value, version)
        SELECT id, convert_to(entry_key, 'UTF8'), convert_to(entry_value, 'UTF8'), nextval('washlet.version')
        FROM washlet.bucket WHERE name = bucket_name
        ON CONFLICT (bucket, key) DO UPDATE
        SET value = excluded.value, version = excluded.version, expires_at = NULL;
END
$$;

-- Removes a key; whether it was there.
CREATE FUNCTION washlet.unset_config(bucket_name text, entry_key text) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM washlet.entry WHERE key = convert_to(entry_key, 'UTF8')
        AND bucket = (SELECT id FROM washlet.bucket WHERE name = bucket_name);
    RETURN FOUND;
END
$$;
