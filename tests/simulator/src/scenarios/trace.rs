//! Recorded load: a CSV of `time_s,tenant,class,prompt_tokens,output_tokens`, one request a row.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::setup::{ClassSpec, TraceRow};

/// A row that cannot be used; the first line of the file is line 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceError {
    /// Line.
    pub line: usize,
    /// What is wrong, with value and range.
    pub problem: String,
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.problem)
    }
}

impl std::error::Error for TraceError {}

const COLUMNS: usize = 5;

/// Rows in order of time. Tenants are any text, classes names of `classes`; a first line that begins with `time` is a heading, empty
/// lines and lines that begin with `#` are passed over.
///
/// # Errors
/// The first 20 rows that cannot be used.
pub fn parse_trace(text: &str, classes: &[ClassSpec]) -> Result<Vec<TraceRow>, Vec<TraceError>> {
    let mut tenants: BTreeMap<&str, u32> = BTreeMap::new();
    let (mut rows, mut errors) = (Vec::new(), Vec::new());
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || (at == 0 && line.starts_with("time")) {
            continue;
        }
        match row(line, classes, &mut tenants) {
            Ok(row) => rows.push(row),
            Err(problem) => errors.push(TraceError { line: at + 1, problem }),
        }
    }
    rows.sort_by_key(|row: &TraceRow| row.at);
    errors.truncate(20);
    if errors.is_empty() { Ok(rows) } else { Err(errors) }
}

fn row<'a>(line: &'a str, classes: &[ClassSpec], tenants: &mut BTreeMap<&'a str, u32>) -> Result<TraceRow, String> {
    let cells: Vec<&str> = line.split(',').map(str::trim).collect();
    let [time, tenant, class, prompt, output] = cells[..] else {
        return Err(format!("{} columns instead of {COLUMNS}: time_s, tenant, class, prompt_tokens, output_tokens", cells.len()));
    };
    let seconds: f64 = time.parse().map_err(|_| format!("time_s: {time:?} is no number"))?;
    let at = Duration::try_from_secs_f64(seconds).map_err(|_| format!("time_s: {seconds} is outside 0..=86400"))?;
    let class = classes.iter().position(|spec| spec.name == class).ok_or_else(|| {
        let known: Vec<&str> = classes.iter().map(|spec| spec.name.as_str()).collect();
        format!("class: {class:?} is none of {}", known.join(", "))
    })?;
    let tokens = |name: &str, cell: &str| match cell.parse::<u32>() {
        Ok(tokens) if (1..=10_000_000).contains(&tokens) => Ok(tokens),
        _ => Err(format!("{name}: {cell:?} is outside 1..=10000000")),
    };
    let next = tenants.len() as u32;
    let tenant = *tenants.entry(tenant).or_insert(next);
    Ok(TraceRow {
        at,
        tenant,
        class: class as u8,
        prompt_tokens: tokens("prompt_tokens", prompt)?,
        output_tokens: tokens("output_tokens", output)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes() -> Vec<ClassSpec> {
        let class = |name: &str| ClassSpec { name: name.to_owned(), ttft: Duration::from_secs(2), tpot: Duration::from_millis(100) };
        vec![class("high"), class("low")]
    }

    #[test]
    fn rows_are_put_in_order_and_tenants_numbered_as_they_appear() {
        let text = "time_s,tenant,class,prompt_tokens,output_tokens\n1.5,acme,low,10,20\n\n# a comment\n0.25,beta,high,30,40\n";
        let rows = parse_trace(text, &classes()).unwrap();
        let row = |at_ms, tenant, class, prompt_tokens, output_tokens| TraceRow {
            at: Duration::from_millis(at_ms),
            tenant,
            class,
            prompt_tokens,
            output_tokens,
        };
        assert_eq!(rows, [row(250, 1, 0, 30, 40), row(1500, 0, 1, 10, 20)]);
    }

    #[test]
    fn every_bad_row_is_named_with_its_line() {
        let errors = parse_trace("1,a,high,1\n-1,a,high,1,1\n1,a,vip,1,1\n1,a,low,0,1\n", &classes()).unwrap_err();
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "line 1: 4 columns instead of 5: time_s, tenant, class, prompt_tokens, output_tokens",
                "line 2: time_s: -1 is outside 0..=86400",
                "line 3: class: \"vip\" is none of high, low",
                "line 4: prompt_tokens: \"0\" is outside 1..=10000000",
            ]
        );
    }
}
