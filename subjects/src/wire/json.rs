//! The proto3 JSON rules, one [`Field`] per type, and the macros that make messages of fields.
//!
//! Written: lowerCamelCase, defaults omitted, `u64` as decimal text, enums by name. Read: also
//! snake_case, numbers as text or the other way round, enums by number; `null` is the default,
//! unknown fields are skipped, of a duplicate the last counts.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Number, Value};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use super::Error;
use crate::clip;

/// A type that can stand behind a key of a message.
pub(crate) trait Field: Sized {
    fn read(value: Value) -> Result<Self, Error>;
    fn write(&self) -> Value;
}

pub(super) fn decode<T: Field>(payload: &[u8]) -> Result<T, Error> {
    T::read(serde_json::from_slice(payload).map_err(Error::Json)?)
}

pub(super) fn encode<T: Field>(message: &T) -> Vec<u8> {
    message.write().to_string().into_bytes()
}

/// The fields of an object.
pub(super) fn object(value: Value) -> Result<Map<String, Value>, Error> {
    match value {
        Value::Object(fields) => Ok(fields),
        other => Err(mismatch("an object", &other)),
    }
}

/// Takes the field `key`, also known as `proto_name`, out of `fields`.
pub(super) fn take<T: Field + Default>(
    fields: &mut Map<String, Value>,
    key: &str,
    proto_name: &str,
) -> Result<T, Error> {
    let mut given = |name| fields.remove(name).filter(|value| !value.is_null());
    match given(key).or_else(|| given(proto_name)) {
        Some(value) => T::read(value).map_err(|error| error.within(key)),
        None => Ok(T::default()),
    }
}

/// Puts `value` under `key` unless it is the default.
pub(super) fn put<T: Field + Default + PartialEq>(
    fields: &mut Map<String, Value>,
    key: &str,
    value: &T,
) {
    if *value != T::default() {
        fields.insert(key.to_owned(), value.write());
    }
}

/// Shape: the text says what kind was found, never the value, which may be a secret in the wrong place.
pub(super) fn mismatch(wanted: impl fmt::Display, found: &Value) -> Error {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    Error::field(format!("must be {wanted}, found {found}"))
}

impl Field for String {
    fn read(value: Value) -> Result<Self, Error> {
        match value {
            Value::String(text) => Ok(text),
            other => Err(mismatch("text", &other)),
        }
    }

    fn write(&self) -> Value {
        Value::String(self.clone())
    }
}

impl Field for bool {
    fn read(value: Value) -> Result<Self, Error> {
        value
            .as_bool()
            .ok_or_else(|| mismatch("true or false", &value))
    }

    fn write(&self) -> Value {
        Value::Bool(*self)
    }
}

/// A whole number, however it is spelled.
pub(super) fn integer(value: &Value) -> Option<i128> {
    match value {
        Value::Number(number) => number.as_i128().or_else(|| {
            let float = number.as_f64()?;
            // Below 2^53 every whole f64 is exact; `1e3` is a legal spelling of 1000.
            (float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i128)
        }),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

macro_rules! integers {
    ($($type:ty => $write:expr;)*) => {$(
        impl Field for $type {
            fn read(value: Value) -> Result<Self, Error> {
                integer(&value).and_then(|number| number.try_into().ok()).ok_or_else(|| {
                    let (min, max) = (<$type>::MIN, <$type>::MAX);
                    mismatch(format_args!("an integer from {min} to {max}"), &value)
                })
            }

            fn write(&self) -> Value {
                $write(*self)
            }
        }
    )*};
}

integers! {
    i32 => Value::from;
    u32 => Value::from;
    u64 => |number: u64| Value::String(number.to_string());
}

impl Field for f32 {
    fn read(value: Value) -> Result<Self, Error> {
        let number = match &value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        number
            .map(|number| number as f32)
            .ok_or_else(|| mismatch("a number", &value))
    }

    fn write(&self) -> Value {
        // By way of the shortest text: 12.3, not 12.300000190734863.
        let shortest = self.to_string();
        match shortest.parse().ok().and_then(Number::from_f64) {
            Some(number) => Value::Number(number),
            None if self.is_nan() => "NaN".into(),
            None if *self > 0.0 => "Infinity".into(),
            None => "-Infinity".into(),
        }
    }
}

impl Field for OffsetDateTime {
    fn read(value: Value) -> Result<Self, Error> {
        let time = match &value {
            Value::String(text) => Self::parse(text, &Rfc3339).ok(),
            _ => None,
        };
        time.and_then(|time| time.checked_to_offset(UtcOffset::UTC))
            .filter(|time| time.year() >= 1)
            .ok_or_else(|| mismatch("an RFC 3339 time", &value))
    }

    fn write(&self) -> Value {
        // `null` reads as "not set": what a time outside the years 1 to 9999 is to every reader.
        let utc = self.checked_to_offset(UtcOffset::UTC);
        match utc.and_then(|time| time.format(&Rfc3339).ok()) {
            Some(text) => Value::String(text.replace('Z', "+00:00")),
            None => Value::Null,
        }
    }
}

impl<T: Field> Field for Option<T> {
    fn read(value: Value) -> Result<Self, Error> {
        T::read(value).map(Some)
    }

    fn write(&self) -> Value {
        self.as_ref().map_or(Value::Null, T::write)
    }
}

impl<T: Field> Field for Vec<T> {
    fn read(value: Value) -> Result<Self, Error> {
        let Value::Array(items) = value else {
            return Err(mismatch("a list", &value));
        };
        let item = |(index, item)| T::read(item).map_err(|e| e.within(&format!("[{index}]")));
        let items: Result<Self, Error> = items.into_iter().enumerate().map(item).collect();
        // Some of it is kept for as long as its workload.
        items.map(|mut items| {
            items.shrink_to_fit();
            items
        })
    }

    fn write(&self) -> Value {
        self.iter().map(T::write).collect()
    }
}

impl Field for BTreeMap<String, String> {
    fn read(value: Value) -> Result<Self, Error> {
        let entry = |(key, value): (String, Value)| match String::read(value) {
            Ok(value) => Ok((key, value)),
            Err(error) => Err(error.within(&clip(&key))),
        };
        object(value)?.into_iter().map(entry).collect()
    }

    fn write(&self) -> Value {
        let entry = |(key, value): (&String, &String)| (key.clone(), Value::String(value.clone()));
        Value::Object(self.iter().map(entry).collect())
    }
}

/// A message without fields: whatever is in it is unknown.
impl Field for Map<String, Value> {
    fn read(value: Value) -> Result<Self, Error> {
        object(value)
    }

    fn write(&self) -> Value {
        Value::Object(self.clone())
    }
}

/// What [`Debug`](fmt::Debug) shows of a field that may hold secrets.
pub(super) struct Redacted<'a, T>(pub(super) &'a T);

const REDACTED: fmt::Arguments<'static> = format_args!("[redacted]");

impl fmt::Debug for Redacted<'_, String> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        REDACTED.fmt(f)
    }
}

impl fmt::Debug for Redacted<'_, BTreeMap<String, String>> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.0.keys().map(|key| (key, REDACTED)))
            .finish()
    }
}

/// A message: `field: type = "jsonKey"`, then `secret` where only the shape may be logged.
macro_rules! message {
    (
        $(#[$meta:meta])*
        $name:ident {
            $($(#[$field_meta:meta])* $field:ident: $type:ty = $key:literal $($secret:ident)?,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Default, PartialEq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        impl json::Field for $name {
            fn read(value: Value) -> Result<Self, Error> {
                let mut fields = json::object(value)?;
                Ok(Self { $($field: json::take(&mut fields, $key, stringify!($field))?,)* })
            }

            fn write(&self) -> Value {
                let mut fields = Map::new();
                $(json::put(&mut fields, $key, &self.$field);)*
                Value::Object(fields)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    $(.field(stringify!($field), json::message!(@show self.$field $($secret)?)))*
                    .finish()
            }
        }

        json::payload!($name);
    };
    (@show $self:ident . $field:ident) => { &$self.$field };
    (@show $self:ident . $field:ident secret) => { &json::Redacted(&$self.$field) };
}
pub(super) use message;

/// A message as bytes and as a part of other serde types.
macro_rules! payload {
    ($name:ident) => {
        impl $name {
            /// Reads the message from a JSON payload.
            ///
            /// # Errors
            ///
            /// [`Error::Json`]; [`Error::Field`] with the path of the first bad field.
            pub fn decode(payload: &[u8]) -> Result<Self, Error> {
                json::decode(payload)
            }

            /// The message as compact JSON.
            pub fn encode(&self) -> Vec<u8> {
                json::encode(self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                json::Field::write(self).serialize(serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = Value::deserialize(deserializer)?;
                json::Field::read(value).map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(super) use payload;

/// An enum: `Variant = number "FULL_NAME"`.
macro_rules! enumeration {
    (
        $(#[$meta:meta])*
        $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $number:literal $text:literal,)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_meta])* $variant = $number,)*
        }

        impl $name {
            /// The full name, as on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl json::Field for $name {
            fn read(value: Value) -> Result<Self, Error> {
                let names: &[&str] = &[$($text),*];
                match value.as_str() {
                    $(Some($text) => return Ok(Self::$variant),)*
                    _ => {}
                }
                match json::integer(&value) {
                    $(Some($number) => Ok(Self::$variant),)*
                    _ => Err(json::mismatch(format_args!("one of {}", names.join(", ")), &value)),
                }
            }

            fn write(&self) -> Value {
                Value::from(self.as_str())
            }
        }
    };
}
pub(super) use enumeration;
