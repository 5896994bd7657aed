//! Colours and glyphs: the sixteen colours and the line drawing that every terminal has, or neither.

use ratatui::style::{Color, Modifier, Style};

/// What a piece of text says by its look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    /// Nothing.
    #[default]
    Plain,
    /// It matters less.
    Dim,
    /// It is a title.
    Title,
    /// All is well.
    Good,
    /// It is on its way, or informs.
    Info,
    /// It deserves a look.
    Watch,
    /// It is at its end.
    Bad,
}

/// Whether colours are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colours {
    /// The terminal's own sixteen.
    Sixteen,
    /// None: bold, dim and reverse only.
    None,
}

/// Which characters bars and marks are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Glyphs {
    /// Line drawing and blocks.
    Unicode,
    /// Seven bits.
    Ascii,
}

/// How everything is painted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Theme {
    pub(super) colours: Colours,
    pub(super) glyphs: Glyphs,
}

/// Share from which on a bar is yellow, and from which on it is red.
const WATCH_FROM: f64 = 0.7;
const BAD_FROM: f64 = 0.9;
const SPARKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ASCII_SPARKS: [char; 8] = ['.', '.', ':', ':', '-', '=', '+', '#'];

// === impl Theme ===

impl Theme {
    /// The theme for this environment: `NO_COLOR` (no-color.org: set and not empty) and a dumb terminal end colours, a locale that is not
    /// UTF-8 ends line drawing.
    pub(super) fn of_environment(ascii: bool) -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let is_plain = set("NO_COLOR").is_some() || set("TERM").is_some_and(|term| term == "dumb");
        // The first of the three that is set decides (POSIX, locale).
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default().to_ascii_lowercase();
        let is_utf8 = locale.contains("utf-8") || locale.contains("utf8");
        Self {
            colours: if is_plain { Colours::None } else { Colours::Sixteen },
            glyphs: if is_utf8 && !ascii { Glyphs::Unicode } else { Glyphs::Ascii },
        }
    }

    pub(super) fn style(self, tone: Tone) -> Style {
        let style = Style::new();
        match (tone, self.colours) {
            (Tone::Plain, _) => style,
            (Tone::Dim, Colours::Sixteen) => style.fg(Color::DarkGray),
            (Tone::Dim, Colours::None) => style.add_modifier(Modifier::DIM),
            (Tone::Title, Colours::Sixteen) => style.fg(Color::Cyan).add_modifier(Modifier::BOLD),
            (Tone::Good, Colours::Sixteen) => style.fg(Color::Green),
            (Tone::Info, Colours::Sixteen) => style.fg(Color::Cyan),
            (Tone::Watch, Colours::Sixteen) => style.fg(Color::Yellow),
            (Tone::Bad, Colours::Sixteen) => style.fg(Color::Red).add_modifier(Modifier::BOLD),
            (Tone::Good | Tone::Info, Colours::None) => style,
            (Tone::Title | Tone::Watch | Tone::Bad, Colours::None) => style.add_modifier(Modifier::BOLD),
        }
    }

    /// A bar of `width` cells: its filled part, then the rest. Half cells are told apart where the glyphs allow.
    pub(super) fn bar(self, share: f64, width: usize) -> (String, String) {
        let halves = (share.clamp(0.0, 1.0) * (2 * width) as f64).round() as usize;
        let (full, half) = (halves / 2, halves % 2);
        match self.glyphs {
            Glyphs::Unicode => {
                (format!("{}{}", "━".repeat(full), if half == 1 { "╸" } else { "" }), "─".repeat(width.saturating_sub(full + half)))
            }
            Glyphs::Ascii => ("#".repeat(full + half), ".".repeat(width.saturating_sub(full + half))),
        }
    }

    /// One character for each value, as high as it is of the largest.
    pub(super) fn spark(self, values: impl Iterator<Item = f64> + Clone) -> String {
        let largest = values.clone().fold(0.0, f64::max);
        let steps = if self.glyphs == Glyphs::Unicode { SPARKS } else { ASCII_SPARKS };
        let step = |value: f64| if largest > 0.0 { ((value / largest) * 7.0).round().clamp(0.0, 7.0) as usize } else { 0 };
        values.map(|value| steps[step(value)]).collect()
    }

    /// Mark in front of the state of the connection.
    pub(super) fn mark(self, is_live: bool) -> &'static str {
        match (self.glyphs, is_live) {
            (Glyphs::Unicode, true) => "●",
            (Glyphs::Unicode, false) => "○",
            (Glyphs::Ascii, true) => "*",
            (Glyphs::Ascii, false) => "o",
        }
    }

    /// Mark behind the title of the column that rows are sorted by.
    pub(super) fn arrow(self, descending: bool) -> &'static str {
        match (self.glyphs, descending) {
            (Glyphs::Unicode, true) => "▼",
            (Glyphs::Unicode, false) => "▲",
            (Glyphs::Ascii, true) => "v",
            (Glyphs::Ascii, false) => "^",
        }
    }

    /// A line across the screen.
    pub(super) fn rule(self, width: usize) -> String {
        if self.glyphs == Glyphs::Unicode { "─".repeat(width) } else { "-".repeat(width) }
    }

    /// What stands between two facts of a line.
    pub(super) fn dot(self) -> &'static str {
        if self.glyphs == Glyphs::Unicode { " · " } else { " | " }
    }

    /// Mark at the end of a text that was cut.
    pub(super) fn ellipsis(self) -> char {
        if self.glyphs == Glyphs::Unicode { '…' } else { '~' }
    }
}

/// Tone of something that is used to `share` of what there is.
pub(super) fn tone_of_use(share: f64) -> Tone {
    match share {
        share if share >= BAD_FROM => Tone::Bad,
        share if share >= WATCH_FROM => Tone::Watch,
        _ => Tone::Good,
    }
}

/// Tone of a state or an action, by its word.
pub(super) fn tone_of_state(word: &str) -> Tone {
    match word {
        "ok" | "admit" | "live" | "current" | "released" | "sampling" => Tone::Good,
        "learning" | "starting" => Tone::Info,
        "recovering" | "throttle" | "stale" | "frozen" | "derated" | "silent" | "engaged" | "shedding" => Tone::Watch,
        "tripped" | "refuse" | "failing" | "refusing" | "ejected" | "lost" | "saturated" => Tone::Bad,
        "disabled" | "unavailable" => Tone::Dim,
        _ => Tone::Plain,
    }
}
