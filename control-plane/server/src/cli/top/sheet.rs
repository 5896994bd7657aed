//! A table of one kind of thing: cells with a look and a key to sort by, columns that give way when the terminal is narrow.

use std::cmp::Ordering;

use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};

use super::paint::{Theme, Tone, tone_of_state, tone_of_use};

/// Cells of a bar.
const BAR_WIDTH: usize = 10;
/// Longest text of a cell as long as there is not room for all.
const MAX_TEXT: usize = 48;
const GAP: usize = 2;

/// Side to which the cells of a column are pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// A column. `rank`: those with the highest go first when there is no room; those with 0 stay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) side: Side,
    pub(super) rank: u8,
}

/// What rows are sorted by.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Key {
    Number(f64),
    Text(String),
    /// There is nothing; it comes last however the rows are sorted.
    Nothing,
}

/// A cell.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
    /// Share of a bar in front of the text.
    bar: Option<(f64, Tone)>,
    key: Key,
}

/// Order of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sort {
    /// `None`: as the control plane gives them.
    pub(super) column: Option<usize>,
    pub(super) descending: bool,
}

/// The table.
#[derive(Clone, Debug)]
pub(super) struct Sheet {
    pub(super) title: &'static str,
    pub(super) columns: &'static [Column],
    pub(super) rows: Vec<Vec<Cell>>,
    /// What stands there without rows.
    pub(super) empty: String,
}

// === impl Cell ===

impl Cell {
    pub(super) fn text(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { key: Key::Text(text.clone()), text, tone: Tone::Plain, bar: None }
    }

    /// A word whose look says how things are.
    pub(super) fn state(word: impl Into<String>) -> Self {
        let cell = Self::text(word);
        let tone = tone_of_state(&cell.text);
        cell.toned(tone)
    }

    /// `shown` stands there and `value` sorts.
    pub(super) fn number(value: f64, shown: String) -> Self {
        Self { text: shown, tone: Tone::Plain, bar: None, key: Key::Number(value) }
    }

    pub(super) fn count(value: u64) -> Self {
        let cell = Self::number(value as f64, grouped(value));
        if value == 0 { cell.toned(Tone::Dim) } else { cell }
    }

    pub(super) fn nothing() -> Self {
        Self { text: "-".to_owned(), tone: Tone::Dim, bar: None, key: Key::Nothing }
    }

    /// A number that may be missing.
    pub(super) fn maybe(value: Option<f64>, shown: impl Fn(f64) -> String) -> Self {
        value.map_or_else(Self::nothing, |value| Self::number(value, shown(value)))
    }

    /// A bar that is filled to `share`, in the tone of its use.
    pub(super) fn bar(share: f64, shown: String) -> Self {
        Self { bar: Some((share, tone_of_use(share))), ..Self::number(share, shown) }
    }

    /// A bar in a tone of its own.
    pub(super) fn bar_toned(self, tone: Tone) -> Self {
        Self { bar: self.bar.map(|(share, _)| (share, tone)), ..self }
    }

    pub(super) fn toned(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }

    fn width(&self) -> usize {
        let bar = if self.bar.is_some() { BAR_WIDTH + 1 } else { 0 };
        bar + self.text.chars().count()
    }

    fn spans(&self, side: Side, width: usize, theme: Theme) -> Vec<Span<'static>> {
        let bar_width = if self.bar.is_some() { BAR_WIDTH + 1 } else { 0 };
        let text = cut(&self.text, width.saturating_sub(bar_width), theme);
        let room = width.saturating_sub(bar_width + text.chars().count());
        let mut spans = Vec::new();
        if let Some((share, tone)) = self.bar {
            let (full, rest) = theme.bar(share, BAR_WIDTH);
            spans.extend([Span::styled(full, theme.style(tone)), Span::styled(rest, theme.style(Tone::Dim)), Span::raw(" ")]);
        }
        let text = Span::styled(text, theme.style(self.tone));
        let padding = Span::raw(" ".repeat(room));
        spans.extend(if side == Side::Left { [text, padding] } else { [padding, text] });
        spans
    }
}

// === impl Sheet ===

impl Sheet {
    /// Puts the rows in order; rows that are alike stay as they are.
    pub(super) fn sort(&mut self, sort: Sort) {
        let Some(column) = sort.column else { return };
        self.rows.sort_by(|a, b| order(a.get(column), b.get(column), sort.descending));
    }

    /// Title line and one line a row, each `width` wide at most; the row `selected` is marked.
    pub(super) fn lines(&self, width: usize, sort: Sort, selected: Option<usize>, theme: Theme) -> (Line<'static>, Vec<Line<'static>>) {
        let shown = self.fit(width, sort);
        let head = shown.iter().flat_map(|(at, width)| {
            let column = &self.columns[*at];
            let title = format!("{}{}", column.title, if sort.column == Some(*at) { theme.arrow(sort.descending) } else { "" });
            let tone = if sort.column == Some(*at) { Tone::Title } else { Tone::Dim };
            [Cell::text(title).toned(tone).spans(column.side, *width, theme), vec![Span::raw(" ".repeat(GAP))]].concat()
        });
        let row = |(index, cells): (usize, &Vec<Cell>)| {
            let line: Vec<Span<'static>> = shown
                .iter()
                .flat_map(|(at, width)| {
                    [cells[*at].spans(self.columns[*at].side, *width, theme), vec![Span::raw(" ".repeat(GAP))]].concat()
                })
                .collect();
            let style = if selected == Some(index) { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
            Line::from(line).style(style)
        };
        (Line::from(head.collect::<Vec<_>>()), self.rows.iter().enumerate().map(row).collect())
    }

    /// The columns for which there is room, with their widths.
    fn fit(&self, width: usize, sort: Sort) -> Vec<(usize, usize)> {
        let natural = |(at, column): (usize, &Column)| {
            let title = column.title.chars().count() + usize::from(sort.column == Some(at));
            let widest = self.rows.iter().map(|row| row[at].width()).max().unwrap_or(0);
            (at, widest.max(title))
        };
        let mut shown: Vec<(usize, usize)> = self.columns.iter().enumerate().map(natural).collect();
        let total = |shown: &[(usize, usize)]| shown.iter().map(|(_, width)| width + GAP).sum::<usize>().saturating_sub(GAP);
        if total(&shown) > width {
            shown.iter_mut().for_each(|(_, width)| *width = (*width).min(MAX_TEXT));
        }
        while total(&shown) > width {
            let last = shown.iter().enumerate().max_by_key(|(_, (at, _))| self.columns[*at].rank).map(|(place, (at, _))| (place, *at));
            match last {
                Some((place, at)) if self.columns[at].rank > 0 => drop(shown.remove(place)),
                _ => break,
            }
        }
        // What must stay and still has no room gives way where it is widest.
        while total(&shown) > width {
            let Some((_, widest)) = shown.iter_mut().max_by_key(|(_, width)| *width).filter(|(_, width)| *width > 1) else { break };
            *widest -= 1;
        }
        shown
    }
}

fn order(a: Option<&Cell>, b: Option<&Cell>, descending: bool) -> Ordering {
    let (Some(a), Some(b)) = (a, b) else { return Ordering::Equal };
    let turned = |order: Ordering| if descending { order.reverse() } else { order };
    match (&a.key, &b.key) {
        (Key::Nothing, Key::Nothing) => Ordering::Equal,
        (Key::Nothing, _) => Ordering::Greater,
        (_, Key::Nothing) => Ordering::Less,
        (Key::Number(a), Key::Number(b)) => turned(a.total_cmp(b)),
        (Key::Text(a), Key::Text(b)) => turned(a.cmp(b)),
        (Key::Number(_), Key::Text(_)) => Ordering::Less,
        (Key::Text(_), Key::Number(_)) => Ordering::Greater,
    }
}

fn cut(text: &str, width: usize, theme: Theme) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain((width > 0).then(|| theme.ellipsis())).collect()
}

/// `1234567` as `1 234 567`.
pub(super) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}
