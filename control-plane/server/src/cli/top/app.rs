//! What is on the screen: the view, its order, the row that is marked, and how the connection is. No terminal, no clock.

use std::time::{Duration, Instant};

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::feed::News;
use super::latencies;
use super::paint::Theme;
use super::sheet::{Sheet, Sort};
use super::sheets::{self, Seen};
use super::trend::Trends;
use crate::status::{PoolStatus, StatusDocument};

/// Shortest and longest time between two looks.
pub(super) const MIN_INTERVAL: Duration = Duration::from_millis(100);
pub(super) const MAX_INTERVAL: Duration = Duration::from_secs(60);

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Overview,
    Pools,
    Classes,
    Levels,
    Gpus,
    Engines,
    Proxies,
    Latencies,
}

/// How the connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Nothing has come yet.
    Connecting,
    /// The last look brought a status.
    Live,
    /// The last look brought none.
    Lost { since: Instant, problem: String, retry_at: Instant },
}

/// Whether news are taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Running,
    /// The screen stands still.
    Paused,
    /// The keys are explained.
    Help,
}

/// What a key asks of the one who runs the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Nothing,
    Quit,
    /// Look this often from now on.
    SetInterval(Duration),
}

/// A status, and when it came.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub(super) document: StatusDocument,
    pub(super) received_at: Instant,
}

/// Order and mark of one view.
#[derive(Clone, Copy, Debug)]
struct Place {
    sort: Sort,
    row: usize,
}

/// The screen.
#[derive(Clone, Debug)]
pub(super) struct App {
    pub(super) address: String,
    pub(super) interval: Duration,
    pub(super) theme: Theme,
    pub(super) view: View,
    pub(super) mode: Mode,
    pub(super) link: Link,
    pub(super) snapshot: Option<Snapshot>,
    pub(super) trends: Trends,
    places: [Place; View::ALL.len()],
}

// === impl View ===

impl View {
    /// In the order of their keys, which begin at 1.
    pub(super) const ALL: [Self; 8] =
        [Self::Overview, Self::Pools, Self::Classes, Self::Levels, Self::Gpus, Self::Engines, Self::Proxies, Self::Latencies];
    /// The views whose sheets make the overview.
    pub(super) const SHEETS: [Self; 6] = [Self::Pools, Self::Classes, Self::Levels, Self::Gpus, Self::Engines, Self::Proxies];

    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Pools => "Pools",
            Self::Classes => "Classes",
            Self::Levels => "Levels",
            Self::Gpus => "GPUs",
            Self::Engines => "Engines",
            Self::Proxies => "Proxies",
            Self::Latencies => "Latencies",
        }
    }

    /// The sheet of the view; that of the pools for the overview.
    pub(super) fn sheet(self, seen: Seen<'_>) -> Sheet {
        match self {
            Self::Overview | Self::Pools => sheets::pools(seen),
            Self::Classes => sheets::classes(seen),
            Self::Levels => sheets::levels(seen),
            Self::Gpus => sheets::gpus(seen),
            Self::Engines => sheets::engines(seen),
            Self::Proxies => sheets::proxies(seen),
            Self::Latencies => latencies::latencies(seen),
        }
    }

    fn columns(self) -> usize {
        match self {
            Self::Overview => 0,
            Self::Pools => sheets::POOL_COLUMNS.len(),
            Self::Classes => sheets::CLASS_COLUMNS.len(),
            Self::Levels => sheets::LEVEL_COLUMNS.len(),
            Self::Gpus => sheets::GPU_COLUMNS.len(),
            Self::Engines => sheets::ENGINE_COLUMNS.len(),
            Self::Proxies => sheets::PROXY_COLUMNS.len(),
            Self::Latencies => latencies::LATENCY_COLUMNS.len(),
        }
    }

    fn index(self) -> usize {
        Self::ALL.iter().position(|view| *view == self).unwrap_or(0)
    }

    fn step(self, by: usize) -> Self {
        Self::ALL[(self.index() + by) % Self::ALL.len()]
    }
}

// === impl App ===

impl App {
    pub(super) fn new(address: String, interval: Duration, theme: Theme) -> Self {
        let place = Place { sort: Sort { column: None, descending: true }, row: 0 };
        Self {
            address,
            interval,
            theme,
            view: View::Overview,
            mode: Mode::Running,
            link: Link::Connecting,
            snapshot: None,
            trends: Trends::default(),
            places: [place; View::ALL.len()],
        }
    }

    /// Takes in what a look brought. While the screen stands still only the connection is followed.
    pub(super) fn take(&mut self, now: Instant, news: News) {
        match news {
            News::Seen(document) => {
                self.link = Link::Live;
                if self.mode != Mode::Paused {
                    self.trends.take(now, &document);
                    self.snapshot = Some(Snapshot { document: *document, received_at: now });
                }
            }
            News::Lost { problem, retry_in } => {
                let since = if let Link::Lost { since, .. } = self.link { since } else { now };
                self.link = Link::Lost { since, problem, retry_at: now + retry_in };
            }
        }
    }

    /// Order of the rows of `view`.
    pub(super) fn sort(&self, view: View) -> Sort {
        self.places[view.index()].sort
    }

    /// The marked row of the view, of `rows`.
    pub(super) fn row(&self, rows: usize) -> usize {
        self.places[self.view.index()].row.min(rows.saturating_sub(1))
    }

    /// What the sheets are made of; `None` before the first status.
    pub(super) fn seen(&self, now: Instant) -> Option<Seen<'_>> {
        let snapshot = self.snapshot.as_ref()?;
        let since = now.saturating_duration_since(snapshot.received_at);
        let since_ms = if self.mode == Mode::Paused { 0 } else { u64::try_from(since.as_millis()).unwrap_or(u64::MAX) };
        Some(Seen { document: &snapshot.document, since_ms, trends: &self.trends, theme: self.theme })
    }

    /// Takes a key.
    pub(super) fn press(&mut self, key: KeyEvent) -> Request {
        if key.kind == KeyEventKind::Release {
            return Request::Nothing;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Request::Quit } else { Request::Nothing };
        }
        if self.mode == Mode::Help {
            self.mode = Mode::Running;
            return if key.code == KeyCode::Char('q') { Request::Quit } else { Request::Nothing };
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Request::Quit,
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.mode = Mode::Help,
            KeyCode::Char('p' | ' ') => self.mode = if self.mode == Mode::Paused { Mode::Running } else { Mode::Paused },
            KeyCode::Char('+' | '=') => return self.set_interval(self.interval / 2),
            KeyCode::Char('-') => return self.set_interval(self.interval * 2),
            KeyCode::Tab | KeyCode::Right | KeyCode::Char('l') => self.view = self.view.step(1),
            KeyCode::BackTab | KeyCode::Left => self.view = self.view.step(View::ALL.len() - 1),
            KeyCode::Char(digit @ '1'..='8') => self.view = View::ALL[digit as usize - '1' as usize],
            code => self.press_in_sheet(code),
        }
        Request::Nothing
    }

    fn press_in_sheet(&mut self, code: KeyCode) {
        let columns = self.view.columns();
        let place = &mut self.places[self.view.index()];
        match code {
            KeyCode::Char('s' | '>') if columns > 0 => {
                place.sort.column = place.sort.column.map_or(Some(0), |at| (at + 1 < columns).then_some(at + 1));
            }
            KeyCode::Char('S' | '<') if columns > 0 => {
                place.sort.column = place.sort.column.map_or(Some(columns - 1), |at| at.checked_sub(1));
            }
            KeyCode::Char('r') => place.sort.descending = !place.sort.descending,
            KeyCode::Down | KeyCode::Char('j') => place.row += 1,
            KeyCode::Up | KeyCode::Char('k') => place.row = place.row.saturating_sub(1),
            KeyCode::PageDown => place.row += 10,
            KeyCode::PageUp => place.row = place.row.saturating_sub(10),
            KeyCode::Home | KeyCode::Char('g') => place.row = 0,
            KeyCode::End | KeyCode::Char('G') => place.row = usize::MAX / 2,
            _ => {}
        }
        place.row = place.row.min(self.snapshot.as_ref().map_or(0, |snapshot| rows(self.view, &snapshot.document)).saturating_sub(1));
    }

    fn set_interval(&mut self, interval: Duration) -> Request {
        self.interval = interval.clamp(MIN_INTERVAL, MAX_INTERVAL);
        Request::SetInterval(self.interval)
    }
}

/// Rows of a view.
fn rows(view: View, document: &StatusDocument) -> usize {
    match view {
        View::Overview => 0,
        View::Pools => document.pools.len(),
        View::Classes => document.pools.iter().map(|pool| pool.classes.len()).sum(),
        View::Levels => document.pools.iter().map(|pool| pool.levels.len() + terms(pool)).sum(),
        View::Gpus => document.gpus.len(),
        View::Engines => document.pools.iter().map(|pool| pool.engines.len()).sum(),
        View::Proxies => document.proxies.len(),
        View::Latencies => document.pools.iter().map(|pool| pool.latencies.streams.len()).sum(),
    }
}

fn terms(pool: &PoolStatus) -> usize {
    pool.overload.as_ref().map_or(0, |overload| overload.measured.len())
}
