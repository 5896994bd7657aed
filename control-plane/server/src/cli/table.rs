//! Plain tables: columns as wide as their widest cell, numbers to the right.

/// Side of a column to which its cells are pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// A table that is filled row by row.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

// === impl Table ===

impl Table {
    pub(super) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as text, without a final line break.
    pub(super) fn render(&self) -> String {
        let cell = |row: &Vec<String>, at: usize| row.get(at).cloned().unwrap_or_default();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|at| self.rows.iter().map(|row| cell(row, at).chars().count()).chain([self.columns[at].0.len()]).max().unwrap_or(0))
            .collect();
        let line = |cells: Vec<String>| {
            let padded = cells.into_iter().zip(&self.columns).zip(&widths).map(|((text, (_, align)), width)| match align {
                Align::Left => format!("{text:<width$}"),
                Align::Right => format!("{text:>width$}"),
            });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let head = line(self.columns.iter().map(|(title, _)| (*title).to_owned()).collect());
        let body = self.rows.iter().map(|row| line((0..self.columns.len()).map(|at| cell(row, at)).collect()));
        std::iter::once(head).chain(body).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right_under_their_title() {
        let mut table = Table::new(&[("CLASS", Align::Left), ("OFFERED", Align::Right)]);
        table.row(vec!["high".to_owned(), "7".to_owned()]);
        table.row(vec!["background".to_owned()]);
        assert_eq!(table.render(), "CLASS       OFFERED\nhigh              7\nbackground");
    }
}
