//! Every type, there and back.

use capabilities::sql::{Date, DateRange, Error, Lexeme, Time, Timestamp, Type, Value};
use plugins_postgres::Postgres;

use crate::{array, number, open, rows, served, text, value};

const DAY: Date = Date::Day(2024, 2, 29);

const NOON: Time = Time {
    hour: 12,
    minute: 34,
    second: 56,
    micro: 7,
};

const MOMENT: Timestamp = Timestamp {
    date: DAY,
    time: NOON,
};

/// A literal, its type, and the value it is.
fn values() -> Vec<(&'static str, &'static str, Value)> {
    let word = |data: &str, position, weight| Lexeme {
        position,
        weight,
        data: data.to_owned(),
    };
    let mut values = vec![
        ("true", "bool", Value::Bool(true)),
        ("-32768", "int2", Value::Int2(i16::MIN)),
        ("2147483647", "int4", Value::Int4(i32::MAX)),
        ("-9223372036854775808", "int8", Value::Int8(i64::MIN)),
        ("0.1", "float4", Value::Float4(0.1)),
        ("1e300", "float8", Value::Float8(1e300)),
        ("-Infinity", "float8", Value::Float8(f64::NEG_INFINITY)),
        ("4.9e-324", "float8", Value::Float8(5e-324)),
        (
            "12345678901234567890.123",
            "numeric",
            text(Type::Numeric, "12345678901234567890.123"),
        ),
        ("-1234.5", "money", text(Type::Money, "-1234.50")),
        (
            "1010000011",
            "bit(10)",
            Value::Bits(Type::Bit, 10, vec![0b1010_0000, 0b1100_0000]),
        ),
        (
            "101",
            "varbit",
            Value::Bits(Type::Varbit, 3, vec![0b1010_0000]),
        ),
        ("\\x00ff27", "bytea", Value::Bytea(vec![0, 255, 39])),
        ("a", "char(3)", text(Type::Char, "a  ")),
        (
            "it''s \"é\"\\",
            "varchar",
            text(Type::Varchar, "it's \"é\"\\"),
        ),
        ("", "text", text(Type::Text, "")),
        ("a\nb", "text", text(Type::Text, "a\nb")),
        ("n", "name", text(Type::Name, "n")),
        ("{\"a\": [1]}", "json", text(Type::Json, "{\"a\": [1]}")),
        ("{\"a\":[1]}", "jsonb", text(Type::Jsonb, "{\"a\": [1]}")),
        ("<a>b</a>", "xml", text(Type::Xml, "<a>b</a>")),
        (
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "uuid",
            text(Type::Uuid, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ),
        ("10.1.0.0/16", "cidr", text(Type::Cidr, "10.1.0.0/16")),
        ("::1/64", "inet", text(Type::Inet, "::1/64")),
        (
            "08:00:2b:01:02:03",
            "macaddr",
            Value::Macaddr([8, 0, 0x2b, 1, 2, 3]),
        ),
        (
            "08:00:2b:01:02:03:04:05",
            "macaddr8",
            Value::Macaddr8([8, 0, 0x2b, 1, 2, 3, 4, 5]),
        ),
        (
            "(3,4),(1,2)",
            "box",
            Value::Shape(Type::Box, vec![(3.0, 4.0), (1.0, 2.0)]),
        ),
        ("<(1,2.5),3>", "circle", Value::Circle((1.0, 2.5), 3.0)),
        (
            "{1,-1,2}",
            "line",
            Value::Shape(Type::Line, vec![(0.0, 2.0), (1.0, 3.0)]),
        ),
        (
            "[(1,2),(3,4)]",
            "lseg",
            Value::Shape(Type::Lseg, vec![(1.0, 2.0), (3.0, 4.0)]),
        ),
        (
            "[(1,2),(3,4)]",
            "path",
            Value::Shape(Type::Path, vec![(1.0, 2.0), (3.0, 4.0)]),
        ),
        (
            "(1,-2e30)",
            "point",
            Value::Shape(Type::Point, vec![(1.0, -2e30)]),
        ),
        (
            "((1,2),(3,4),(5,6))",
            "polygon",
            Value::Shape(Type::Polygon, vec![(1.0, 2.0), (3.0, 4.0), (5.0, 6.0)]),
        ),
        ("2024-02-29", "date", Value::Date(DAY)),
        ("0044-03-15 BC", "date", Value::Date(Date::Day(-43, 3, 15))),
        ("-infinity", "date", Value::Date(Date::MinusInfinity)),
        (
            "[2024-02-29,)",
            "daterange",
            Value::DateRange(DateRange {
                start: DAY,
                start_inclusive: true,
                end: Date::Infinity,
                end_inclusive: false,
            }),
        ),
        ("12:34:56.000007", "time", Value::Time(NOON)),
        (
            "12:34:56.000007-03:30",
            "timetz",
            Value::TimeTz(NOON, "-03:30".to_owned()),
        ),
        (
            "2024-02-29 12:34:56.000007",
            "timestamp",
            Value::Timestamp(MOMENT),
        ),
        (
            "2024-02-29 14:34:56.000007+02",
            "timestamptz",
            Value::TimestampTz(MOMENT, 0),
        ),
        ("16/B374D848", "pg_lsn", Value::PgLsn(0x16_B374_D848)),
        ("7:7:", "txid_snapshot", Value::TxidSnapshot(7)),
        ("'a' & 'b'", "tsquery", text(Type::TsQuery, "'a' & 'b'")),
        (
            "cat:2 fat:1A,3",
            "tsvector",
            Value::TsVector(vec![
                word("cat", Some(2), None),
                word("fat", Some(1), Some('A')),
                word("fat", Some(3), None),
            ]),
        ),
        ("1 2 3", "int2vector", Value::Int2Vector(vec![1, 2, 3])),
        ("{}", "text[]", array(Type::Text, vec![])),
        (
            "{1,2}",
            "int4[]",
            array(Type::Int4, vec![Value::Int4(1), Value::Int4(2)]),
        ),
        (
            "{\"a,\\\"{}\\\\\",NULLL,\"\"}",
            "text[]",
            array(
                Type::Text,
                ["a,\"{}\\", "NULLL", ""]
                    .map(|each| text(Type::Text, each))
                    .to_vec(),
            ),
        ),
        (
            "{(3,4),(1,2);(1,1),(0,0)}",
            "box[]",
            array(
                Type::Box,
                vec![
                    Value::Shape(Type::Box, vec![(3.0, 4.0), (1.0, 2.0)]),
                    Value::Shape(Type::Box, vec![(1.0, 1.0), (0.0, 0.0)]),
                ],
            ),
        ),
        (
            "{\"2024-02-29 12:34:56.000007+00\"}",
            "timestamptz[]",
            array(Type::TimestampTz, vec![Value::TimestampTz(MOMENT, 0)]),
        ),
        (
            "{\"\\\\x00\"}",
            "bytea[]",
            array(Type::Bytea, vec![Value::Bytea(vec![0])]),
        ),
    ];
    // One element of each other type.
    for (kind, name, literal) in [
        (Type::Json, "json", "{}"),
        (Type::Uuid, "uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        (Type::Numeric, "numeric", "1.50"),
        (Type::Inet, "inet", "10.0.0.1"),
    ] {
        let element = text(kind, literal);
        let literal: &'static str = format!("{{\"{literal}\"}}").leak();
        values.push((
            literal,
            format!("{name}[]").leak(),
            array(kind, vec![element]),
        ));
    }
    values
}

/// Every value is what the server says, comes back as it was sent, and is known to be NULL.
#[tokio::test]
async fn values_are_what_the_server_means() {
    let (_server, _plugin, database) = served(&[]).await;
    for (literal, kind, expected) in values() {
        let literal = match literal.contains("''") {
            true => literal.to_owned(),
            false => literal.replace('\'', "''"),
        };
        let found = value(&database, &format!("SELECT '{literal}'::{kind}"), vec![]).await;
        assert_eq!(found, expected, "{literal}::{kind}");
        let back = value(&database, "SELECT $1", vec![expected.clone()]).await;
        assert_eq!(back, expected, "{literal}::{kind}");
        let null = format!("SELECT NULL::{kind}");
        assert_eq!(value(&database, &null, vec![]).await, Value::Null, "{kind}");
        let null = format!("SELECT $1::{kind}");
        assert_eq!(
            value(&database, &null, vec![Value::Null]).await,
            Value::Null,
            "{kind}"
        );
    }
    // Those without a case are text, arrays of them, too.
    database
        .batch("CREATE TYPE mood AS ENUM ('glad')")
        .await
        .unwrap();
    for (statement, expected) in [
        ("SELECT 'glad'::mood", "glad"),
        ("SELECT ARRAY['glad'::mood]", "{glad}"),
        ("SELECT interval '1 day'", "1 day"),
        ("SELECT int4range(1, 3)", "[1,3)"),
    ] {
        assert_eq!(
            value(&database, statement, vec![]).await,
            text(Type::Text, expected)
        );
    }
    for statement in [
        "SELECT ARRAY[1, NULL]",
        "SELECT ARRAY[[1], [2]]",
        "SELECT '1:9:2'::txid_snapshot",
    ] {
        let refused = rows(&database, statement, vec![]).await;
        assert!(
            matches!(refused, Err(Error::Conversion(_))),
            "{statement}: {refused:?}"
        );
    }
    let extension = "SELECT count(*) FROM pg_available_extensions WHERE name = 'hstore'";
    if number(&database, extension).await > 0 {
        database.batch("CREATE EXTENSION hstore").await.unwrap();
        let fresh = open(&Postgres::new(None), &_server.url(), &[]).await;
        let pairs = vec![
            ("a".to_owned(), Some("\"\\".to_owned())),
            ("b".to_owned(), None),
        ];
        let pairs = Value::Hstore(pairs);
        assert_eq!(value(&fresh, "SELECT $1", vec![pairs.clone()]).await, pairs);
    }
}
