//! What values of the WIT consist of, and what is made of that.

use capabilities::sql::{Point, Type, Value};

/// Mantissa, exponent, sign.
pub(super) type Float = (u64, i16, i8);

/// Those of numbers that are none, and of the infinite ones, as the `num` crate takes floats apart.
const NAN_64: (u64, i16) = (3 << 51, 972);
const NAN_32: (u64, i16) = (3 << 22, 105);

fn float(mantissa: u64, exponent: i16, sign: i8) -> f64 {
    if mantissa == 0 {
        return f64::from(sign) * 0.0;
    }
    // In two steps, as the smallest numbers have powers that are none themselves.
    let half = i32::from(exponent) / 2;
    let (first, second) = (2_f64.powi(half), 2_f64.powi(i32::from(exponent) - half));
    mantissa as f64 * first * second * f64::from(sign.signum())
}

pub(super) fn float_64((mantissa, exponent, sign): Float) -> f64 {
    match (mantissa, exponent) == NAN_64 {
        true => f64::NAN,
        false => float(mantissa, exponent, sign),
    }
}

pub(super) fn float_32((mantissa, exponent, sign): Float) -> f32 {
    match (mantissa, exponent) == NAN_32 {
        true => f32::NAN,
        false => float(mantissa, exponent, sign) as f32,
    }
}

fn sign(is_negative: bool) -> i8 {
    if is_negative { -1 } else { 1 }
}

/// Mantissa and exponent of bits, of which `width` are the mantissa's.
fn apart(bits: u64, width: u32, exponent_max: u64, bias: i16) -> (u64, i16) {
    let exponent = (bits >> width) & exponent_max;
    let mantissa = bits & ((1 << width) - 1);
    let mantissa = match exponent {
        0 => mantissa << 1,
        _ => mantissa | 1 << width,
    };
    // At most 2047.
    (mantissa, i16::try_from(exponent).unwrap_or(i16::MAX) - bias)
}

pub(super) fn parts_64(value: f64) -> Float {
    let (mantissa, exponent) = match value.is_nan() {
        true => NAN_64,
        false => apart(value.to_bits(), 52, 0x7ff, 1075),
    };
    (mantissa, exponent, sign(value.is_sign_negative()))
}

pub(super) fn parts_32(value: f32) -> Float {
    let (mantissa, exponent) = match value.is_nan() {
        true => NAN_32,
        false => apart(value.to_bits().into(), 23, 0xff, 150),
    };
    (mantissa, exponent, sign(value.is_sign_negative()))
}

pub(super) fn point((x, y): (Float, Float)) -> Point {
    (float_64(x), float_64(y))
}

pub(super) fn of_point((x, y): Point) -> (Float, Float) {
    (parts_64(x), parts_64(y))
}

/// A shape of two points.
pub(super) fn pair(kind: Type, (a, b): ((Float, Float), (Float, Float))) -> Value {
    Value::Shape(kind, vec![point(a), point(b)])
}

pub(super) fn points(kind: Type, all: Vec<(Float, Float)>) -> Value {
    Value::Shape(kind, all.into_iter().map(point).collect())
}

/// Text of at most `count` characters.
pub(super) fn chars(kind: Type, count: Option<u32>, bytes: Vec<u8>) -> Result<Value, String> {
    let text = String::from_utf8(bytes).map_err(|_| "the text is no UTF-8".to_owned())?;
    match count.map(|count| usize::try_from(count).unwrap_or(usize::MAX)) {
        Some(count) if text.chars().count() > count => {
            Err(format!("the text has more than {count} characters"))
        }
        _ => Ok(Value::Text(kind, text)),
    }
}

/// Without a count all bits of the bytes.
pub(super) fn bits(kind: Type, count: Option<u32>, bytes: Vec<u8>) -> Result<Value, String> {
    let count = match count {
        Some(count) => count,
        None => u32::try_from(bytes.len().saturating_mul(8)).map_err(|_| "too many bits")?,
    };
    Ok(Value::Bits(kind, count, bytes))
}

pub(super) fn serial(value: u32) -> Result<Value, String> {
    let value = i32::try_from(value);
    value
        .map(Value::Int4)
        .map_err(|_| "a serial is at most 2147483647".to_owned())
}

/// What a value of an array is not.
pub(super) fn other(value: &Value) -> String {
    format!("no case for {value:?}").chars().take(64).collect()
}

/// The elements of an array, which match `$pattern`, as `$each`; `all` is of the module it stands in.
macro_rules! elements {
    ($values:expr, $pattern:pat, $each:expr) => {
        all($values, |value| match value {
            $pattern => Ok($each),
            value => Err(value),
        })?
    };
}

pub(super) use elements;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_taken_apart_and_put_together() {
        for value in [
            0.0,
            -0.0,
            1.0,
            -1.5,
            f64::MIN_POSITIVE,
            5e-324,
            f64::MAX,
            f64::INFINITY,
            f64::NEG_INFINITY,
            0.1,
        ] {
            assert_eq!(
                float_64(parts_64(value)).to_bits(),
                value.to_bits(),
                "{value}"
            );
        }
        assert_eq!(parts_64(1.0), (1 << 52, -52, 1));
        assert!(float_64(parts_64(f64::NAN)).is_nan());
        for value in [
            0.0,
            -1.5,
            f32::MIN_POSITIVE,
            1e-45,
            f32::MAX,
            f32::INFINITY,
            0.1,
        ] {
            assert_eq!(
                float_32(parts_32(value)).to_bits(),
                value.to_bits(),
                "{value}"
            );
        }
        assert!(float_32(parts_32(f32::NAN)).is_nan());
        // However odd the parts.
        assert_eq!(float_64((u64::MAX, i16::MAX, -1)), f64::NEG_INFINITY);
        assert_eq!(float_64((u64::MAX, i16::MIN, 1)), 0.0);
        assert_eq!(float_64((0, i16::MAX, 1)), 0.0);
    }

    #[test]
    fn lengths_are_kept() {
        assert!(chars(Type::Char, Some(2), "éé".into()).is_ok());
        assert!(chars(Type::Char, Some(1), "éé".into()).is_err());
        assert!(chars(Type::Varchar, None, vec![0xff]).is_err());
        assert!(serial(u32::MAX).is_err());
        let all = bits(Type::Varbit, None, vec![0xff; 2]);
        assert_eq!(all, Ok(Value::Bits(Type::Varbit, 16, vec![0xff; 2])));
    }
}
