//! Values as Postgres reads and writes them: all as text, which every type has.

use capabilities::sql::{Point, Type, Value};

use super::{literal, moments};

/// Each type's number, that of its arrays, and the type; 0 where Postgres gives none.
const TYPES: [(u32, u32, Type); 41] = [
    (16, 1000, Type::Bool),
    (17, 1001, Type::Bytea),
    (19, 1003, Type::Name),
    (20, 1016, Type::Int8),
    (21, 1005, Type::Int2),
    (22, 1006, Type::Int2Vector),
    (23, 1007, Type::Int4),
    (25, 1009, Type::Text),
    (114, 199, Type::Json),
    (142, 143, Type::Xml),
    (600, 1017, Type::Point),
    (601, 1018, Type::Lseg),
    (602, 1019, Type::Path),
    (603, 1020, Type::Box),
    (604, 1027, Type::Polygon),
    (628, 629, Type::Line),
    (650, 651, Type::Cidr),
    (700, 1021, Type::Float4),
    (701, 1022, Type::Float8),
    (718, 719, Type::Circle),
    (774, 775, Type::Macaddr8),
    (790, 791, Type::Money),
    (829, 1040, Type::Macaddr),
    (869, 1041, Type::Inet),
    (1042, 1014, Type::Char),
    (1043, 1015, Type::Varchar),
    (1082, 1182, Type::Date),
    (1083, 1183, Type::Time),
    (1114, 1115, Type::Timestamp),
    (1184, 1185, Type::TimestampTz),
    (1266, 1270, Type::TimeTz),
    (1560, 1561, Type::Bit),
    (1562, 1563, Type::Varbit),
    (1700, 1231, Type::Numeric),
    (2950, 2951, Type::Uuid),
    (2970, 0, Type::TxidSnapshot),
    (3220, 3221, Type::PgLsn),
    (3614, 0, Type::TsVector),
    (3615, 0, Type::TsQuery),
    (3802, 3807, Type::Jsonb),
    (3912, 3913, Type::DateRange),
];

/// That of `pg_snapshot`, which Postgres has since version 13.
const SNAPSHOT: u32 = 5038;

/// What a column is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    One(Type),
    Many(Type),
}

/// Why a value cannot be read.
#[derive(Debug)]
pub(super) enum Failure {
    Conversion(String),
    /// It takes more memory than it may.
    TooLarge,
}

impl From<&'static str> for Failure {
    fn from(why: &'static str) -> Self {
        Self::Conversion(why.to_owned())
    }
}

/// What may still be taken of memory.
pub(super) struct Budget(usize);

impl Budget {
    pub(super) fn of(bytes: usize) -> Self {
        Self(bytes)
    }

    /// Takes a value with `bytes` beside it.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Failure> {
        let bytes = bytes.saturating_add(size_of::<Value>());
        self.0 = self.0.checked_sub(bytes).ok_or(Failure::TooLarge)?;
        Ok(())
    }

    /// How much of `all` was taken.
    pub(super) fn taken(&self, all: usize) -> usize {
        all - self.0
    }
}

/// The number of a parameter's type; 0 for the server to find out.
pub(super) fn oid(value: &Value, hstore: Option<u32>) -> u32 {
    let find = |wanted: Type| TYPES.iter().find(|(.., kind)| *kind == wanted);
    let one = |wanted| find(wanted).map_or(0, |(oid, ..)| *oid);
    match value {
        Value::Null => 0,
        Value::Array(element, _) => find(*element).map_or(0, |(_, oid, _)| *oid),
        Value::Hstore(_) => hstore.unwrap_or(0),
        Value::PgSnapshot(..) => SNAPSHOT,
        Value::Bool(_) => one(Type::Bool),
        Value::Int2(_) => one(Type::Int2),
        Value::Int4(_) => one(Type::Int4),
        Value::Int8(_) => one(Type::Int8),
        Value::Float4(_) => one(Type::Float4),
        Value::Float8(_) => one(Type::Float8),
        Value::Bytea(_) => one(Type::Bytea),
        Value::Bits(kind, ..) | Value::Text(kind, _) | Value::Shape(kind, _) => one(*kind),
        Value::Macaddr(_) => one(Type::Macaddr),
        Value::Macaddr8(_) => one(Type::Macaddr8),
        Value::Circle(..) => one(Type::Circle),
        Value::Date(_) => one(Type::Date),
        Value::DateRange(_) => one(Type::DateRange),
        Value::Time(_) => one(Type::Time),
        Value::TimeTz(..) => one(Type::TimeTz),
        Value::Timestamp(_) => one(Type::Timestamp),
        Value::TimestampTz(..) => one(Type::TimestampTz),
        Value::PgLsn(_) => one(Type::PgLsn),
        Value::TxidSnapshot(_) => one(Type::TxidSnapshot),
        Value::TsVector(_) => one(Type::TsVector),
        Value::Int2Vector(_) => one(Type::Int2Vector),
    }
}

/// Adds the text of a parameter; whether there is one, which NULL has not.
///
/// # Errors
/// What is wrong with the value.
pub(super) fn write(value: &Value, out: &mut Vec<u8>) -> Result<bool, String> {
    match value {
        Value::Null => return Ok(false),
        // The large ones, without a copy.
        Value::Text(_, text) => out.extend_from_slice(text.as_bytes()),
        Value::Bytea(bytes) => hex(bytes, out),
        value => out.extend(string(value)?.into_bytes()),
    }
    Ok(true)
}

fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    let digit = |nibble: u8| b"0123456789abcdef".get(usize::from(nibble)).copied();
    out.extend(b"\\x");
    for byte in bytes {
        out.extend(digit(byte >> 4));
        out.extend(digit(byte & 15));
    }
}

fn string(value: &Value) -> Result<String, String> {
    Ok(match value {
        Value::Null => return Err("NULL in an array".to_owned()),
        Value::Bool(value) => value.to_string(),
        Value::Int2(value) => value.to_string(),
        Value::Int4(value) => value.to_string(),
        Value::Int8(value) => value.to_string(),
        Value::TxidSnapshot(value) => format!("{value}:{value}:"),
        Value::Float4(value) => format!("{value:e}"),
        Value::Float8(value) => format!("{value:e}"),
        Value::Bits(_, count, bytes) => bits(*count, bytes)?,
        Value::Bytea(bytes) => {
            let mut out = Vec::new();
            hex(bytes, &mut out);
            String::from_utf8_lossy(&out).into_owned()
        }
        Value::Text(_, text) => text.clone(),
        Value::Macaddr(bytes) => mac(bytes),
        Value::Macaddr8(bytes) => mac(bytes),
        Value::Shape(kind, points) => shape(*kind, points)?,
        Value::Circle(center, radius) => format!("<{},{radius:e}>", point(center)),
        Value::Date(date) => moments::date(*date)?,
        Value::DateRange(range) => moments::range(*range)?,
        Value::Time(time) => moments::time(*time)?,
        Value::TimeTz(time, zone) => moments::time_tz(*time, zone)?,
        Value::Timestamp(moment) => moments::timestamp(*moment, None)?,
        Value::TimestampTz(moment, offset) => moments::timestamp(*moment, Some(*offset))?,
        Value::PgLsn(position) => format!("{:X}/{:X}", position >> 32, position & 0xffff_ffff),
        Value::PgSnapshot(first, next, open) => {
            let open: Vec<String> = open.iter().map(ToString::to_string).collect();
            format!("{first}:{next}:{}", open.join(","))
        }
        Value::TsVector(lexemes) => literal::vector(lexemes)?,
        Value::Int2Vector(numbers) => {
            let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
            numbers.join(" ")
        }
        Value::Hstore(pairs) => literal::hstore(pairs),
        Value::Array(element, values) => {
            literal::array(values.iter().map(string), separator(*element))?
        }
    })
}

fn separator(element: Type) -> char {
    match element {
        Type::Box => ';',
        _ => ',',
    }
}

fn bits(count: u32, bytes: &[u8]) -> Result<String, String> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if bytes.len() != count.div_ceil(8) {
        return Err(format!("{count} bits are not {} bytes", bytes.len()));
    }
    let all = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
    Ok(all.take(count).map(|bit| char::from(b'0' + bit)).collect())
}

fn mac(bytes: &[u8]) -> String {
    let parts: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

fn point((x, y): &Point) -> String {
    format!("({x:e},{y:e})")
}

fn shape(kind: Type, points: &[Point]) -> Result<String, String> {
    let all: Vec<String> = points.iter().map(point).collect();
    match (kind, points.len()) {
        (Type::Point, 1) | (Type::Box, 2) => Ok(all.join(",")),
        (Type::Line | Type::Lseg, 2) | (Type::Path, 1..) => Ok(format!("[{}]", all.join(","))),
        (Type::Polygon, 1..) => Ok(format!("({})", all.join(","))),
        (kind, count) => Err(format!("{count} points are no {kind:?}")),
    }
}

impl Kind {
    /// That of a column of the type with the number `oid`.
    pub(super) fn of(oid: u32, hstore: Option<u32>) -> Self {
        if hstore == Some(oid) {
            return Self::One(Type::Hstore);
        }
        if oid == SNAPSHOT {
            return Self::One(Type::PgSnapshot);
        }
        let mut all = TYPES.iter().filter(|_| oid != 0);
        let found = all.find(|(one, many, _)| [*one, *many].contains(&oid));
        match found {
            Some((one, _, kind)) if *one == oid => Self::One(*kind),
            Some((.., kind)) => Self::Many(*kind),
            // What has no case of its own is given as it looks.
            None => Self::One(Type::Text),
        }
    }

    /// The value that `text` stands for, within `budget`.
    pub(super) fn read(self, text: &str, budget: &mut Budget) -> Result<Value, Failure> {
        let element = match self {
            Self::One(kind) => {
                budget.take(text.len())?;
                return read(kind, text);
            }
            Self::Many(element) => element,
        };
        budget.take(0)?;
        let mut values = Vec::new();
        literal::read_array(text, separator(element), |text| {
            budget.take(text.len())?;
            values.push(read(element, text)?);
            Ok::<_, Failure>(())
        })?;
        Ok(Value::Array(element, values))
    }
}

fn read(kind: Type, text: &str) -> Result<Value, Failure> {
    let value = match kind {
        Type::Bool => match text {
            "t" => Some(Value::Bool(true)),
            "f" => Some(Value::Bool(false)),
            _ => None,
        },
        Type::Int2 => text.parse().ok().map(Value::Int2),
        Type::Int4 => text.parse().ok().map(Value::Int4),
        Type::Int8 => text.parse().ok().map(Value::Int8),
        Type::Float4 => text.parse().ok().map(Value::Float4),
        Type::Float8 => text.parse().ok().map(Value::Float8),
        Type::Bit | Type::Varbit => read_bits(kind, text),
        Type::Bytea => read_hex(text).map(Value::Bytea),
        Type::Money => Some(Value::Text(kind, read_money(text))),
        Type::Numeric
        | Type::Char
        | Type::Varchar
        | Type::Text
        | Type::Name
        | Type::Json
        | Type::Jsonb
        | Type::Xml
        | Type::Uuid
        | Type::Cidr
        | Type::Inet
        | Type::TsQuery => Some(Value::Text(kind, text.to_owned())),
        Type::Macaddr => read_mac(text).map(Value::Macaddr),
        Type::Macaddr8 => read_mac(text).map(Value::Macaddr8),
        Type::Line => read_line(text),
        Type::Box | Type::Lseg | Type::Path | Type::Point | Type::Polygon => {
            read_points(text).map(|points| Value::Shape(kind, points))
        }
        Type::Circle => read_circle(text),
        Type::Date => moments::read_date(text).map(Value::Date),
        Type::DateRange => moments::read_range(text).map(Value::DateRange),
        Type::Time => moments::read_time(text).map(Value::Time),
        Type::TimeTz => moments::read_time_tz(text).map(|(time, zone)| Value::TimeTz(time, zone)),
        Type::Timestamp => moments::read_timestamp(text).map(Value::Timestamp),
        Type::TimestampTz => moments::read_timestamp_tz(text)
            .map(|(moment, offset)| Value::TimestampTz(moment, offset)),
        Type::PgLsn => read_lsn(text).map(Value::PgLsn),
        Type::PgSnapshot => {
            read_snapshot(text).map(|(first, next, open)| Value::PgSnapshot(first, next, open))
        }
        Type::TxidSnapshot => {
            match read_snapshot(text) {
                Some((first, next, open)) if first == next && open.is_empty() => {
                    Some(Value::TxidSnapshot(first))
                }
                Some(_) => return Err(
                    "a txid_snapshot with transactions under way is no one number; use pg_snapshot"
                        .into(),
                ),
                None => None,
            }
        }
        Type::TsVector => literal::read_vector(text).map(Value::TsVector),
        Type::Int2Vector => {
            let numbers = text
                .split_ascii_whitespace()
                .map(|number| number.parse().ok());
            numbers.collect::<Option<_>>().map(Value::Int2Vector)
        }
        Type::Hstore => literal::read_hstore(text).map(Value::Hstore),
    };
    value.ok_or_else(|| {
        Failure::Conversion(format!("the text of a {kind:?} is not as it is usually"))
    })
}

fn read_bits(kind: Type, text: &str) -> Option<Value> {
    let mut bytes = vec![0; text.len().div_ceil(8)];
    for (index, bit) in text.bytes().enumerate() {
        let byte = bytes.get_mut(index / 8)?;
        match bit {
            b'0' => {}
            b'1' => *byte |= 0x80 >> (index % 8),
            _ => return None,
        }
    }
    Some(Value::Bits(kind, u32::try_from(text.len()).ok()?, bytes))
}

fn read_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("\\x")?.as_bytes();
    let nibble = |digit: &u8| {
        char::from(*digit)
            .to_digit(16)
            .and_then(|n| u8::try_from(n).ok())
    };
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => Some(nibble(high)? << 4 | nibble(low)?),
        _ => None,
    });
    pairs.collect()
}

fn read_mac<const N: usize>(text: &str) -> Option<[u8; N]> {
    let parts = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok());
    parts.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

/// Digits alone, where the text is like `-$1,000.00`; others are given as they are.
fn read_money(text: &str) -> String {
    let digits: String = text.chars().filter(|c| !matches!(c, '$' | ',')).collect();
    match digits.parse::<f64>() {
        Ok(_)
            if digits
                .rsplit_once('.')
                .is_some_and(|(_, cents)| cents.len() == 2) =>
        {
            digits
        }
        _ => text.to_owned(),
    }
}

fn read_numbers(text: &str) -> Option<Vec<f64>> {
    text.split(',').map(|number| number.parse().ok()).collect()
}

fn read_points(text: &str) -> Option<Vec<Point>> {
    let plain: String = text
        .chars()
        .filter(|c| !matches!(c, '(' | ')' | '[' | ']'))
        .collect();
    let numbers = read_numbers(&plain)?;
    let points = numbers.chunks(2).map(|pair| match pair {
        [x, y] => Some((*x, *y)),
        _ => None,
    });
    points.collect()
}

fn read_circle(text: &str) -> Option<Value> {
    let plain: String = text
        .chars()
        .filter(|c| !matches!(c, '(' | ')' | '<' | '>'))
        .collect();
    match read_numbers(&plain)?.as_slice() {
        [x, y, radius] => Some(Value::Circle((*x, *y), *radius)),
        _ => None,
    }
}

/// Two points of the line `Ax + By + C = 0`.
fn read_line(text: &str) -> Option<Value> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    let numbers = read_numbers(inner)?;
    let [a, b, c] = numbers.as_slice() else {
        return None;
    };
    let points = match *b == 0.0 {
        true => vec![(-c / a, 0.0), (-c / a, 1.0)],
        false => vec![(0.0, -c / b), (1.0, -(a + c) / b)],
    };
    Some(Value::Shape(Type::Line, points))
}

fn read_lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let part = |digits| u32::from_str_radix(digits, 16).ok().map(u64::from);
    Some(part(high)? << 32 | part(low)?)
}

fn read_snapshot(text: &str) -> Option<(i64, i64, Vec<i64>)> {
    let mut parts = text.split(':');
    let (first, next, open) = (parts.next()?, parts.next()?, parts.next()?);
    let open = open
        .split(',')
        .filter(|id| !id.is_empty())
        .map(|id| id.parse().ok());
    Some((
        first.parse().ok()?,
        next.parse().ok()?,
        open.collect::<Option<_>>()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: Kind, text: &str, bytes: usize) -> Result<Value, Failure> {
        kind.read(text, &mut Budget::of(bytes))
    }

    #[test]
    fn what_a_value_takes_is_counted_by_element() {
        let text = format!("{{{}1}}", "1,".repeat(99));
        let kind = Kind::of(1007, None);
        assert_eq!(kind, Kind::Many(Type::Int4));
        let room = 101 * size_of::<Value>() + 100;
        assert!(read(kind, &text, room).is_ok());
        assert!(matches!(
            read(kind, &text, room - 1),
            Err(Failure::TooLarge)
        ));
    }

    #[test]
    fn what_has_no_case_is_text() {
        assert_eq!(Kind::of(1186, None), Kind::One(Type::Text));
        assert_eq!(Kind::of(0, None), Kind::One(Type::Text));
        assert_eq!(Kind::of(99_999, Some(99_999)), Kind::One(Type::Hstore));
        assert_eq!(Kind::of(SNAPSHOT, None), Kind::One(Type::PgSnapshot));
    }

    #[test]
    fn garbled_texts_are_refused() {
        for kind in TYPES.map(|(.., kind)| kind) {
            let value = read(Kind::One(kind), "?", 1 << 10);
            let is_text = matches!(value, Ok(Value::Text(..)));
            assert!(
                is_text || matches!(value, Err(Failure::Conversion(_))),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn money_is_digits_where_that_is_sure() {
        for (text, money) in [
            ("$1,234.50", "1234.50"),
            ("-$0.05", "-0.05"),
            ("1.234,50 €", "1.234,50 €"),
            ("¥1,234", "¥1,234"),
        ] {
            assert_eq!(read_money(text), money);
        }
    }

    #[test]
    fn bits_are_as_many_as_said() {
        assert_eq!(bits(3, &[0b1010_0000]).unwrap(), "101");
        assert!(bits(9, &[0]).is_err() && bits(0, &[0]).is_err());
        assert_eq!(bits(0, &[]).unwrap(), "");
    }
}
