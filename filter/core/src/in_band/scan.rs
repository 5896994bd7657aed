//! A number in a text that need not be well-formed.

/// Longest number that is read, in bytes.
const MAX_NUMBER_BYTES: usize = 32;

/// The number behind the last key `"name"` of a JSON text, or of any piece of one.
///
/// The key has to stand in plain quotes: inside a JSON string a quote is escaped, so what a model writes cannot pass for a key.
pub(super) fn last_number(text: &[u8], name: &str) -> Option<f64> {
    let mut before = text;
    while let Some(quote) = before.iter().rposition(|byte| *byte == b'"') {
        let found = text.get(quote + 1..).and_then(|rest| rest.strip_prefix(name.as_bytes())).and_then(value_of_key);
        if found.is_some() {
            return found;
        }
        before = before.get(..quote)?;
    }
    None
}

/// The number in `": 12.5, …`.
fn value_of_key(rest: &[u8]) -> Option<f64> {
    let rest = rest.strip_prefix(b"\"")?.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    let is_part = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'+' | b'e' | b'E');
    let len = rest.iter().take(MAX_NUMBER_BYTES).take_while(|byte| is_part(byte)).count();
    number(rest.get(..len)?)
}

/// A finite decimal number, to 18 digits. The standard library's way is exact to the last bit and would bring tables of 10 KiB into the
/// module.
pub(super) fn number(text: &[u8]) -> Option<f64> {
    if text.len() > MAX_NUMBER_BYTES {
        return None;
    }
    let (is_negative, text) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        (b'+', rest) => (false, rest),
        _ => (false, text),
    };
    let end = text.iter().position(|byte| matches!(byte, b'e' | b'E'));
    let (plain, power) = match end {
        Some(end) => (text.get(..end)?, whole(text.get(end + 1..)?)?),
        None => (text, 0),
    };
    let (mut mantissa, mut scale, mut has_digit, mut has_point) = (0_u64, power, false, false);
    for byte in plain {
        match byte {
            b'0'..=b'9' => {
                has_digit = true;
                let is_kept = mantissa < MAX_MANTISSA;
                if is_kept {
                    mantissa = mantissa * 10 + u64::from(byte - b'0');
                }
                // A digit that is left out before the point, or kept behind it, moves the point.
                scale += i32::from(!is_kept && !has_point) - i32::from(is_kept && has_point);
            }
            b'.' if !has_point => has_point = true,
            _ => return None,
        }
    }
    let powers = (0..scale.unsigned_abs()).fold(1.0, |power: f64, _| power * 10.0);
    let size = if scale < 0 { mantissa as f64 / powers } else { mantissa as f64 * powers };
    (has_digit && size.is_finite()).then_some(if is_negative { -size } else { size })
}

/// A mantissa from which on no further digit fits.
const MAX_MANTISSA: u64 = 100_000_000_000_000_000;

/// A power of ten, `-330..=330`: beyond lies no number.
fn whole(text: &[u8]) -> Option<i32> {
    let text = core::str::from_utf8(text).ok()?;
    text.parse().ok().filter(|power| (-330..=330).contains(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_key_counts_and_its_number_may_be_written_in_any_way() {
        assert_eq!(last_number(br#"{"a":1,"b" : 2.5e1 }"#, "b"), Some(25.0));
        assert_eq!(last_number(br#"{"a":1,"a":7}"#, "a"), Some(7.0));
        assert_eq!(last_number(br#"{"a":null,"usage":{"a":3"#, "a"), Some(3.0), "a piece of a text");
        assert_eq!(last_number(br#"{"a":3,"b":{"a":null}}"#, "a"), Some(3.0), "one without a number is passed over");
    }

    #[test]
    fn what_a_model_writes_is_no_key() {
        let text = br#"data: {"choices":[{"delta":{"content":"{\"completion_tokens\": 9}"}}]}"#;
        assert_eq!(last_number(text, "completion_tokens"), None);
        assert_eq!(last_number(br#"{"completion_tokens_x": 9}"#, "completion_tokens"), None);
    }

    #[test]
    fn a_number_is_read_as_the_standard_library_reads_it() {
        for text in ["0", "1", "-1", "+3", "0.25", "3.0", ".5", "5.", "1e3", "2.5E-2", "123456789.125", "0.0001", "9007199254740992"] {
            assert_eq!(number(text.as_bytes()), text.parse().ok(), "{text}");
        }
        let long = number(b"0.12345678901234567890").unwrap();
        assert!((long - 0.123_456_789_012_345_67).abs() < 1e-15, "{long}");
        let large = number(b"12345678901234567890123").unwrap();
        assert!((large / 12_345_678_901_234_567_890_123.0 - 1.0).abs() < 1e-15, "{large}");
    }

    #[test]
    fn what_is_no_finite_number_is_none() {
        for text in ["NaN", "inf", "1e999", "", "1.2.3", "--1", "0x10", &"1".repeat(33)] {
            assert_eq!(number(text.as_bytes()), None, "{text}");
        }
        assert_eq!(last_number(br#""a":"#, "a"), None);
        assert_eq!(last_number(b"\"a", "a"), None);
    }
}
