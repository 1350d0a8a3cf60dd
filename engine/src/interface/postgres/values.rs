//! `pg-value` and the values of a database, each as the other; the same for both versions of the package.

/// Defines `from_wit` and `to_wit` for the `pg-value` of a package.
macro_rules! conversions {
    ($wit:ident) => {
        use crate::interface::postgres::parts;
        use capabilities::sql::{Type, Value};

        fn many<T>(
            element: Type,
            values: Vec<T>,
            each: impl Fn(T) -> Result<Value, String>,
        ) -> Result<Value, String> {
            let values = values.into_iter().map(each).collect::<Result<_, _>>()?;
            Ok(Value::Array(element, values))
        }

        fn texts(element: Type, values: Vec<String>) -> Result<Value, String> {
            many(element, values, |text| Ok(Value::Text(element, text)))
        }

        fn date(date: $wit::Date) -> sql::Date {
            match date {
                $wit::Date::PositiveInfinity => sql::Date::Infinity,
                $wit::Date::NegativeInfinity => sql::Date::MinusInfinity,
                $wit::Date::Ymd((year, month, day)) => sql::Date::Day(year, month, day),
            }
        }

        fn of_date(date: sql::Date) -> $wit::Date {
            match date {
                sql::Date::Infinity => $wit::Date::PositiveInfinity,
                sql::Date::MinusInfinity => $wit::Date::NegativeInfinity,
                sql::Date::Day(year, month, day) => $wit::Date::Ymd((year, month, day)),
            }
        }

        fn range(range: $wit::Interval) -> Value {
            Value::DateRange(sql::DateRange {
                start: date(range.start),
                start_inclusive: range.start_inclusive,
                end: date(range.end),
                end_inclusive: range.end_inclusive,
            })
        }

        fn of_range(range: sql::DateRange) -> $wit::Interval {
            $wit::Interval {
                start: of_date(range.start),
                start_inclusive: range.start_inclusive,
                end: of_date(range.end),
                end_inclusive: range.end_inclusive,
            }
        }

        fn time(time: $wit::Time) -> sql::Time {
            sql::Time {
                hour: time.hour,
                minute: time.min,
                second: time.sec,
                micro: time.micro,
            }
        }

        fn of_time(time: sql::Time) -> $wit::Time {
            $wit::Time {
                hour: time.hour,
                min: time.minute,
                sec: time.second,
                micro: time.micro,
            }
        }

        fn moment(moment: $wit::Timestamp) -> sql::Timestamp {
            sql::Timestamp {
                date: date(moment.date),
                time: time(moment.time),
            }
        }

        fn of_moment(moment: sql::Timestamp) -> $wit::Timestamp {
            $wit::Timestamp {
                date: of_date(moment.date),
                time: of_time(moment.time),
            }
        }

        fn moment_tz(zoned: $wit::TimestampTz) -> Value {
            let offset = match zoned.offset {
                $wit::Offset::EasternHemisphereSecs(seconds) => seconds,
                $wit::Offset::WesternHemisphereSecs(seconds) => seconds.saturating_neg(),
            };
            Value::TimestampTz(moment(zoned.timestamp), offset)
        }

        fn of_moment_tz(of_day: sql::Timestamp, offset: i32) -> $wit::TimestampTz {
            $wit::TimestampTz {
                timestamp: of_moment(of_day),
                offset: match offset {
                    0.. => $wit::Offset::EasternHemisphereSecs(offset),
                    _ => $wit::Offset::WesternHemisphereSecs(offset.saturating_neg()),
                },
            }
        }

        fn mac(address: $wit::MacAddressEui48) -> Value {
            Value::Macaddr(address.bytes.into())
        }

        fn mac8(address: $wit::MacAddressEui64) -> Value {
            Value::Macaddr8(address.bytes.into())
        }

        fn circle((center, radius): ((parts::Float, parts::Float), parts::Float)) -> Value {
            Value::Circle(parts::point(center), parts::float_64(radius))
        }

        fn lexeme(lexeme: $wit::Lexeme) -> sql::Lexeme {
            let weight = lexeme.weight.map(|weight| match weight {
                $wit::LexemeWeight::A => 'A',
                $wit::LexemeWeight::B => 'B',
                $wit::LexemeWeight::C => 'C',
                $wit::LexemeWeight::D => 'D',
            });
            sql::Lexeme {
                position: lexeme.position,
                weight,
                data: lexeme.data,
            }
        }

        fn of_lexeme(lexeme: sql::Lexeme) -> $wit::Lexeme {
            let weight = lexeme.weight.map(|weight| match weight {
                'A' => $wit::LexemeWeight::A,
                'B' => $wit::LexemeWeight::B,
                'C' => $wit::LexemeWeight::C,
                _ => $wit::LexemeWeight::D,
            });
            $wit::Lexeme {
                position: lexeme.position,
                weight,
                data: lexeme.data,
            }
        }

        /// A parameter as the database takes it.
        fn from_wit(value: PgValue) -> Result<Value, String> {
            Ok(match value {
                PgValue::Null => Value::Null,
                PgValue::BigInt(v)
                | PgValue::Int8(v)
                | PgValue::BigSerial(v)
                | PgValue::Serial8(v) => Value::Int8(v),
                PgValue::Int8Array(all) => many(Type::Int8, all, |v| Ok(Value::Int8(v)))?,
                PgValue::Bool(v) | PgValue::Boolean(v) => Value::Bool(v),
                PgValue::BoolArray(all) => many(Type::Bool, all, |v| Ok(Value::Bool(v)))?,
                PgValue::Integer(v) | PgValue::Int(v) | PgValue::Int4(v) => Value::Int4(v),
                PgValue::Int4Array(all) => many(Type::Int4, all, |v| Ok(Value::Int4(v)))?,
                PgValue::SmallInt(v)
                | PgValue::Int2(v)
                | PgValue::SmallSerial(v)
                | PgValue::Serial2(v) => Value::Int2(v),
                PgValue::Int2Array(all) => many(Type::Int2, all, |v| Ok(Value::Int2(v)))?,
                PgValue::Serial(v) | PgValue::Serial4(v) => parts::serial(v)?,
                PgValue::Double(v) | PgValue::Float8(v) => Value::Float8(parts::float_64(v)),
                PgValue::Float8Array(all) => {
                    many(Type::Float8, all, |v| Ok(Value::Float8(parts::float_64(v))))?
                }
                PgValue::Real(v) | PgValue::Float4(v) => Value::Float4(parts::float_32(v)),
                PgValue::Float4Array(all) => {
                    many(Type::Float4, all, |v| Ok(Value::Float4(parts::float_32(v))))?
                }
                PgValue::Numeric(v) | PgValue::Decimal(v) => Value::Text(Type::Numeric, v),
                PgValue::NumericArray(all) => texts(Type::Numeric, all)?,
                PgValue::Money(v) => Value::Text(Type::Money, v),
                PgValue::MoneyArray(all) => texts(Type::Money, all)?,
                PgValue::Cidr(v) => Value::Text(Type::Cidr, v),
                PgValue::CidrArray(all) => texts(Type::Cidr, all)?,
                PgValue::Inet(v) => Value::Text(Type::Inet, v),
                PgValue::InetArray(all) => texts(Type::Inet, all)?,
                PgValue::Json(v) => Value::Text(Type::Json, v),
                PgValue::JsonArray(all) => texts(Type::Json, all)?,
                PgValue::Jsonb(v) => Value::Text(Type::Jsonb, v),
                PgValue::JsonbArray(all) => texts(Type::Jsonb, all)?,
                PgValue::Name(v) => Value::Text(Type::Name, v),
                PgValue::NameArray(all) => texts(Type::Name, all)?,
                PgValue::Text(v) => Value::Text(Type::Text, v),
                PgValue::TextArray(all) => texts(Type::Text, all)?,
                PgValue::Xml(v) => Value::Text(Type::Xml, v),
                PgValue::XmlArray(all) => texts(Type::Xml, all)?,
                PgValue::Uuid(v) => Value::Text(Type::Uuid, v),
                PgValue::UuidArray(all) => texts(Type::Uuid, all)?,
                PgValue::TsQuery(v) => Value::Text(Type::TsQuery, v),
                PgValue::Char((count, v)) => parts::chars(Type::Char, Some(count), v)?,
                PgValue::CharArray(all) => many(Type::Char, all, |(count, v)| {
                    parts::chars(Type::Char, Some(count), v)
                })?,
                PgValue::Varchar((count, v)) => parts::chars(Type::Varchar, count, v)?,
                PgValue::VarcharArray(all) => many(Type::Varchar, all, |(count, v)| {
                    parts::chars(Type::Varchar, count, v)
                })?,
                PgValue::Bit((count, v)) => parts::bits(Type::Bit, Some(count), v)?,
                PgValue::BitArray(all) => many(Type::Bit, all, |(count, v)| {
                    parts::bits(Type::Bit, Some(count), v)
                })?,
                PgValue::BitVarying((count, v)) | PgValue::Varbit((count, v)) => {
                    parts::bits(Type::Varbit, count, v)?
                }
                PgValue::VarbitArray(all) => many(Type::Varbit, all, |(count, v)| {
                    parts::bits(Type::Varbit, count, v)
                })?,
                PgValue::Bytea(v) => Value::Bytea(v),
                PgValue::ByteaArray(all) => many(Type::Bytea, all, |v| Ok(Value::Bytea(v)))?,
                PgValue::Macaddr(v) => mac(v),
                PgValue::MacaddrArray(all) => many(Type::Macaddr, all, |v| Ok(mac(v)))?,
                PgValue::Macaddr8(v) => mac8(v),
                PgValue::Macaddr8Array(all) => many(Type::Macaddr8, all, |v| Ok(mac8(v)))?,
                PgValue::Box(v) => parts::pair(Type::Box, v),
                PgValue::BoxArray(all) => many(Type::Box, all, |v| Ok(parts::pair(Type::Box, v)))?,
                PgValue::Line(v) => parts::pair(Type::Line, v),
                PgValue::LineArray(all) => {
                    many(Type::Line, all, |v| Ok(parts::pair(Type::Line, v)))?
                }
                PgValue::Lseg(v) => parts::pair(Type::Lseg, v),
                PgValue::LsegArray(all) => {
                    many(Type::Lseg, all, |v| Ok(parts::pair(Type::Lseg, v)))?
                }
                PgValue::Path(v) => parts::points(Type::Path, v),
                PgValue::PathArray(all) => {
                    many(Type::Path, all, |v| Ok(parts::points(Type::Path, v)))?
                }
                PgValue::Polygon(v) => parts::points(Type::Polygon, v),
                PgValue::PolygonArray(all) => {
                    many(Type::Polygon, all, |v| Ok(parts::points(Type::Polygon, v)))?
                }
                PgValue::Point(v) => parts::points(Type::Point, vec![v]),
                PgValue::PointArray(all) => many(Type::Point, all, |v| {
                    Ok(parts::points(Type::Point, vec![v]))
                })?,
                PgValue::Circle(v) => circle(v),
                PgValue::CircleArray(all) => many(Type::Circle, all, |v| Ok(circle(v)))?,
                PgValue::Date(v) => Value::Date(date(v)),
                PgValue::DateArray(all) => many(Type::Date, all, |v| Ok(Value::Date(date(v))))?,
                PgValue::Interval(v) => range(v),
                PgValue::IntervalArray(all) => many(Type::DateRange, all, |v| Ok(range(v)))?,
                PgValue::Time(v) => Value::Time(time(v)),
                PgValue::TimeArray(all) => many(Type::Time, all, |v| Ok(Value::Time(time(v))))?,
                PgValue::Timestamp(v) => Value::Timestamp(moment(v)),
                PgValue::TimestampArray(all) => {
                    many(Type::Timestamp, all, |v| Ok(Value::Timestamp(moment(v))))?
                }
                PgValue::TimeTz(v) => Value::TimeTz(time(v.time), v.timesonze),
                PgValue::TimeTzArray(all) => many(Type::TimeTz, all, |v| {
                    Ok(Value::TimeTz(time(v.time), v.timesonze))
                })?,
                PgValue::TimestampTz(v) => moment_tz(v),
                PgValue::TimestampTzArray(all) => {
                    many(Type::TimestampTz, all, |v| Ok(moment_tz(v)))?
                }
                PgValue::PgLsn(v) => Value::PgLsn(v),
                PgValue::PgLsnArray(all) => many(Type::PgLsn, all, |v| Ok(Value::PgLsn(v)))?,
                PgValue::PgSnapshot((first, next, open)) => Value::PgSnapshot(first, next, open),
                PgValue::TxidSnapshot(v) => Value::TxidSnapshot(v),
                PgValue::Int2Vector(v) => Value::Int2Vector(v),
                PgValue::Int2VectorArray(all) => {
                    many(Type::Int2Vector, all, |v| Ok(Value::Int2Vector(v)))?
                }
                PgValue::TsVector(all) => Value::TsVector(all.into_iter().map(lexeme).collect()),
                PgValue::Hstore(v) => Value::Hstore(v),
            })
        }

        /// A column's value as the guest takes it.
        fn to_wit(value: Value) -> Result<PgValue, String> {
            Ok(match value {
                Value::Null => PgValue::Null,
                Value::Int8(v) => PgValue::Int8(v),
                Value::Bool(v) => PgValue::Bool(v),
                Value::Int4(v) => PgValue::Int4(v),
                Value::Int2(v) => PgValue::Int2(v),
                Value::Float8(v) => PgValue::Float8(parts::parts_64(v)),
                Value::Float4(v) => PgValue::Float4(parts::parts_32(v)),
                Value::Text(Type::Numeric, v) => PgValue::Numeric(v),
                Value::Text(Type::Money, v) => PgValue::Money(v),
                Value::Text(Type::Cidr, v) => PgValue::Cidr(v),
                Value::Text(Type::Inet, v) => PgValue::Inet(v),
                Value::Text(Type::Json, v) => PgValue::Json(v),
                Value::Text(Type::Jsonb, v) => PgValue::Jsonb(v),
                Value::Text(Type::Name, v) => PgValue::Name(v),
                Value::Text(Type::Text, v) => PgValue::Text(v),
                Value::Text(Type::Xml, v) => PgValue::Xml(v),
                Value::Text(Type::Uuid, v) => PgValue::Uuid(v),
                Value::Text(Type::TsQuery, v) => PgValue::TsQuery(v),
                Value::Text(Type::Char, v) => PgValue::Char(counted(v)),
                Value::Text(Type::Varchar, v) => {
                    let (count, v) = counted(v);
                    PgValue::Varchar((Some(count), v))
                }
                Value::Text(_, v) => PgValue::Text(v),
                Value::Bits(Type::Bit, count, v) => PgValue::Bit((count, v)),
                Value::Bits(_, count, v) => PgValue::Varbit((Some(count), v)),
                Value::Bytea(v) => PgValue::Bytea(v),
                Value::Macaddr(v) => PgValue::Macaddr($wit::MacAddressEui48 { bytes: v.into() }),
                Value::Macaddr8(v) => PgValue::Macaddr8($wit::MacAddressEui64 { bytes: v.into() }),
                Value::Shape(Type::Box, v) => PgValue::Box(two(v)?),
                Value::Shape(Type::Line, v) => PgValue::Line(two(v)?),
                Value::Shape(Type::Lseg, v) => PgValue::Lseg(two(v)?),
                Value::Shape(Type::Path, v) => {
                    PgValue::Path(v.into_iter().map(parts::of_point).collect())
                }
                Value::Shape(Type::Polygon, v) => {
                    PgValue::Polygon(v.into_iter().map(parts::of_point).collect())
                }
                Value::Shape(_, v) => PgValue::Point(one(v)?),
                Value::Circle(center, radius) => {
                    PgValue::Circle((parts::of_point(center), parts::parts_64(radius)))
                }
                Value::Date(v) => PgValue::Date(of_date(v)),
                Value::DateRange(v) => PgValue::Interval(of_range(v)),
                Value::Time(v) => PgValue::Time(of_time(v)),
                Value::Timestamp(v) => PgValue::Timestamp(of_moment(v)),
                Value::TimeTz(v, timesonze) => PgValue::TimeTz($wit::TimeTz {
                    timesonze,
                    time: of_time(v),
                }),
                Value::TimestampTz(v, offset) => PgValue::TimestampTz(of_moment_tz(v, offset)),
                Value::PgLsn(v) => PgValue::PgLsn(v),
                Value::PgSnapshot(first, next, open) => PgValue::PgSnapshot((first, next, open)),
                Value::TxidSnapshot(v) => PgValue::TxidSnapshot(v),
                Value::Int2Vector(v) => PgValue::Int2Vector(v),
                Value::TsVector(all) => PgValue::TsVector(all.into_iter().map(of_lexeme).collect()),
                Value::Hstore(v) => PgValue::Hstore(v),
                Value::Array(element, values) => array(element, values)?,
            })
        }

        /// The elements of an array, each as `each` takes it.
        fn all<T>(
            values: Vec<Value>,
            each: impl Fn(Value) -> Result<T, Value>,
        ) -> Result<Vec<T>, String> {
            let values = values.into_iter().map(each);
            values
                .collect::<Result<_, _>>()
                .map_err(|value| parts::other(&value))
        }

        fn shapes<T>(
            values: Vec<Value>,
            each: impl Fn(Vec<sql::Point>) -> Result<T, String>,
        ) -> Result<Vec<T>, String> {
            let values = values.into_iter().map(|value| match value {
                Value::Shape(_, points) => each(points),
                value => Err(parts::other(&value)),
            });
            values.collect()
        }

        type WitPoint = (parts::Float, parts::Float);

        fn one(points: Vec<sql::Point>) -> Result<WitPoint, String> {
            let point = points.into_iter().next().map(parts::of_point);
            point.ok_or_else(|| "a shape without points".to_owned())
        }

        fn two(points: Vec<sql::Point>) -> Result<(WitPoint, WitPoint), String> {
            match points.as_slice() {
                [a, b] => Ok((parts::of_point(*a), parts::of_point(*b))),
                _ => Err("a shape of other than two points".to_owned()),
            }
        }

        /// One text and how many characters it has.
        fn counted(text: String) -> (u32, Vec<u8>) {
            let count = u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
            (count, text.into_bytes())
        }

        fn array(element: Type, values: Vec<Value>) -> Result<PgValue, String> {
            Ok(match element {
                Type::Int8 => PgValue::Int8Array(parts::elements!(values, Value::Int8(v), v)),
                Type::Bool => PgValue::BoolArray(parts::elements!(values, Value::Bool(v), v)),
                Type::Int4 => PgValue::Int4Array(parts::elements!(values, Value::Int4(v), v)),
                Type::Int2 => PgValue::Int2Array(parts::elements!(values, Value::Int2(v), v)),
                Type::Float8 => PgValue::Float8Array(parts::elements!(
                    values,
                    Value::Float8(v),
                    parts::parts_64(v)
                )),
                Type::Float4 => PgValue::Float4Array(parts::elements!(
                    values,
                    Value::Float4(v),
                    parts::parts_32(v)
                )),
                Type::Numeric => {
                    PgValue::NumericArray(parts::elements!(values, Value::Text(_, v), v))
                }
                Type::Money => PgValue::MoneyArray(parts::elements!(values, Value::Text(_, v), v)),
                Type::Cidr => PgValue::CidrArray(parts::elements!(values, Value::Text(_, v), v)),
                Type::Inet => PgValue::InetArray(parts::elements!(values, Value::Text(_, v), v)),
                Type::Json => PgValue::JsonArray(parts::elements!(values, Value::Text(_, v), v)),
                Type::Jsonb => PgValue::JsonbArray(parts::elements!(values, Value::Text(_, v), v)),
                Type::Name => PgValue::NameArray(parts::elements!(values, Value::Text(_, v), v)),
                Type::Text => PgValue::TextArray(parts::elements!(values, Value::Text(_, v), v)),
                Type::Xml => PgValue::XmlArray(parts::elements!(values, Value::Text(_, v), v)),
                Type::Uuid => PgValue::UuidArray(parts::elements!(values, Value::Text(_, v), v)),
                Type::Char => {
                    PgValue::CharArray(parts::elements!(values, Value::Text(_, v), counted(v)))
                }
                Type::Varchar => {
                    PgValue::VarcharArray(parts::elements!(values, Value::Text(_, v), {
                        let (count, v) = counted(v);
                        (Some(count), v)
                    }))
                }
                Type::Bit => PgValue::BitArray(parts::elements!(
                    values,
                    Value::Bits(_, count, v),
                    (count, v)
                )),
                Type::Varbit => PgValue::VarbitArray(parts::elements!(
                    values,
                    Value::Bits(_, count, v),
                    (Some(count), v)
                )),
                Type::Bytea => PgValue::ByteaArray(parts::elements!(values, Value::Bytea(v), v)),
                Type::Macaddr => PgValue::MacaddrArray(parts::elements!(
                    values,
                    Value::Macaddr(v),
                    $wit::MacAddressEui48 { bytes: v.into() }
                )),
                Type::Macaddr8 => PgValue::Macaddr8Array(parts::elements!(
                    values,
                    Value::Macaddr8(v),
                    $wit::MacAddressEui64 { bytes: v.into() }
                )),
                Type::Box => PgValue::BoxArray(shapes(values, two)?),
                Type::Line => PgValue::LineArray(shapes(values, two)?),
                Type::Lseg => PgValue::LsegArray(shapes(values, two)?),
                Type::Path => PgValue::PathArray(shapes(values, |v| {
                    Ok(v.into_iter().map(parts::of_point).collect())
                })?),
                Type::Polygon => PgValue::PolygonArray(shapes(values, |v| {
                    Ok(v.into_iter().map(parts::of_point).collect())
                })?),
                Type::Point => PgValue::PointArray(shapes(values, one)?),
                Type::Circle => {
                    PgValue::CircleArray(parts::elements!(values, Value::Circle(center, radius), {
                        (parts::of_point(center), parts::parts_64(radius))
                    }))
                }
                Type::Date => {
                    PgValue::DateArray(parts::elements!(values, Value::Date(v), of_date(v)))
                }
                Type::DateRange => PgValue::IntervalArray(parts::elements!(
                    values,
                    Value::DateRange(v),
                    of_range(v)
                )),
                Type::Time => {
                    PgValue::TimeArray(parts::elements!(values, Value::Time(v), of_time(v)))
                }
                Type::Timestamp => PgValue::TimestampArray(parts::elements!(
                    values,
                    Value::Timestamp(v),
                    of_moment(v)
                )),
                Type::TimeTz => PgValue::TimeTzArray(parts::elements!(
                    values,
                    Value::TimeTz(v, timesonze),
                    $wit::TimeTz {
                        timesonze,
                        time: of_time(v)
                    }
                )),
                Type::TimestampTz => PgValue::TimestampTzArray(parts::elements!(
                    values,
                    Value::TimestampTz(v, offset),
                    of_moment_tz(v, offset)
                )),
                Type::PgLsn => PgValue::PgLsnArray(parts::elements!(values, Value::PgLsn(v), v)),
                Type::Int2Vector => {
                    PgValue::Int2VectorArray(parts::elements!(values, Value::Int2Vector(v), v))
                }
                element => return Err(format!("there is no case for arrays of {element:?}")),
            })
        }
    };
}

pub(super) use conversions;
