//! One line of a Prometheus page: name, labels, value.

use std::borrow::Cow;

/// Labels of one series that are read.
const MAX_LABELS: usize = 64;
/// Longest line that is read, in bytes.
pub(crate) const MAX_LINE_BYTES: usize = 16_384;

/// A sample. Labels borrow from the line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample<'a> {
    labels: Vec<(&'a str, Cow<'a, str>)>,
    /// Its value; may be anything that a float can be.
    pub(crate) value: f64,
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// Not UTF-8.
    #[error("is not UTF-8")]
    Encoding,
    /// Longer than is read.
    #[error("is longer than {MAX_LINE_BYTES} bytes")]
    TooLong,
    /// More labels than are read.
    #[error("has more than {MAX_LABELS} labels")]
    TooManyLabels,
    /// The labels are not in the format.
    #[error("has malformed labels")]
    Labels,
    /// A label comes twice.
    #[error("has a label twice")]
    LabelTwice,
    /// There is no number where the value belongs.
    #[error("has no number for a value")]
    Value,
}

// === impl Sample ===

impl Sample<'_> {
    /// The value of the label `name`.
    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| *label == name).map(|(_, value)| &**value)
    }

    /// The labels in one canonical text: two samples of one name with the same text are one series.
    pub(crate) fn identity(&self) -> String {
        let mut labels: Vec<String> = self.labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        labels.sort_unstable();
        labels.join(",")
    }
}

/// Parses a line whose name ends at `name_bytes`. A timestamp after the value is allowed and ignored, an exemplar too.
///
/// # Errors
/// [`SampleError`]; never panics.
pub(crate) fn parse(line: &[u8], name_bytes: usize) -> Result<Sample<'_>, SampleError> {
    if line.len() > MAX_LINE_BYTES {
        return Err(SampleError::TooLong);
    }
    let line = std::str::from_utf8(line).map_err(|_| SampleError::Encoding)?;
    let rest = line.get(name_bytes..).unwrap_or_default().trim_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let number = rest.split_ascii_whitespace().next().ok_or(SampleError::Value)?;
    Ok(Sample { labels, value: number.parse().map_err(|_| SampleError::Value)? })
}

type Labels<'a> = Vec<(&'a str, Cow<'a, str>)>;

/// The labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> Result<(Labels<'_>, &str), SampleError> {
    let mut labels = Labels::new();
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        if labels.len() >= MAX_LABELS {
            return Err(SampleError::TooManyLabels);
        }
        let (name, after) = rest.split_once('=').ok_or(SampleError::Labels)?;
        let name = name.trim();
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let quoted = after.trim_start().strip_prefix('"').filter(|_| is_name).ok_or(SampleError::Labels)?;
        let (value, after) = value(quoted)?;
        if labels.iter().any(|(other, _)| *other == name) {
            return Err(SampleError::LabelTwice);
        }
        labels.push((name, value));
        rest = after.trim_start();
        rest = match rest.strip_prefix(',') {
            Some(after) => after,
            None if rest.starts_with('}') => rest,
            None => return Err(SampleError::Labels),
        };
    }
}

/// A label's value up to its closing quote, escapes resolved, and what follows it.
fn value(text: &str) -> Result<(Cow<'_, str>, &str), SampleError> {
    let end = text.find(['"', '\\']).ok_or(SampleError::Labels)?;
    let (plain, rest) = text.split_at(end);
    if let Some(after) = rest.strip_prefix('"') {
        return Ok((Cow::Borrowed(plain), after));
    }
    let mut value = plain.to_owned();
    let mut chars = rest.chars();
    loop {
        match chars.next().ok_or(SampleError::Labels)? {
            '"' => return Ok((Cow::Owned(value), chars.as_str())),
            '\\' => value.push(match chars.next().ok_or(SampleError::Labels)? {
                'n' => '\n',
                escaped @ ('"' | '\\') => escaped,
                _ => return Err(SampleError::Labels),
            }),
            plain => value.push(plain),
        }
    }
}
