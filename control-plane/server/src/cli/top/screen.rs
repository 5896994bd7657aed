//! Draws the screen: a line about the connection, the views, the sheets, and the keys.

use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph, Widget};

use super::app::{App, Link, Mode, View};
use super::paint::Tone;

const KEYS: &[(&str, &str)] = &[
    ("1-8", "view"),
    ("s S", "sort by next, previous column"),
    ("r", "reverse"),
    ("j k", "row"),
    ("p", "pause"),
    ("+ -", "faster, slower"),
    ("?", "help"),
    ("q", "quit"),
];

const HELP: &[(&str, &str)] = &[
    ("1 to 8, Tab, arrows", "change the view"),
    ("s, S (or >, <)", "sort by the next, the previous column"),
    ("r", "reverse the order"),
    ("j, k, arrows, PgUp, PgDn", "mark a row; g and G: the first, the last"),
    ("p, Space", "stand still, go on"),
    ("+, -", "look twice, half as often"),
    ("q, Esc, Ctrl-C", "quit"),
];

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App, now: Instant) {
    let [head, tabs, body, keys] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(2), Constraint::Min(0), Constraint::Length(1)]).areas(frame.area());
    frame.render_widget(Paragraph::new(head_line(app, now, usize::from(head.width))), head);
    frame.render_widget(Paragraph::new(tab_lines(app, usize::from(tabs.width))), tabs);
    frame.render_widget(Paragraph::new(body_lines(app, now, body)), body);
    frame.render_widget(Paragraph::new(key_line(app, usize::from(keys.width))), keys);
    if app.mode == Mode::Help {
        help(frame, app);
    }
}

/// The overview as text, as wide as `width` and as high as it needs to be.
pub(super) fn text(app: &App, now: Instant, width: u16) -> String {
    let lines = overview(app, now, usize::from(width), usize::MAX);
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX);
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
    Paragraph::new(lines).render(buffer.area, &mut buffer);
    let row = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(row).collect::<Vec<_>>().join("\n")
}

/// Who is watched, how the connection is, how much there is.
fn head_line(app: &App, now: Instant, width: usize) -> Line<'static> {
    let theme = app.theme;
    let (state, tone) = match &app.link {
        Link::Connecting => ("connecting".to_owned(), Tone::Info),
        Link::Live if app.mode == Mode::Paused => ("paused".to_owned(), Tone::Watch),
        Link::Live => ("live".to_owned(), Tone::Good),
        Link::Lost { since, problem, retry_at } => {
            let lost = seconds(now.saturating_duration_since(*since));
            let next = seconds(retry_at.saturating_duration_since(now));
            (format!("lost for {lost}: {problem}{}next try in {next}", theme.dot()), Tone::Bad)
        }
    };
    let mut spans = vec![
        Span::styled("headgate top ", theme.style(Tone::Title)),
        Span::raw(format!(" {}  ", app.address)),
        Span::styled(format!("{} {state}", theme.mark(app.link == Link::Live)), theme.style(tone)),
    ];
    let aside = match app.seen(now) {
        Some(seen) if app.link != Link::Live => format!("what you see is {} old", seconds(Duration::from_millis(seen.since_ms))),
        Some(seen) => {
            let engines: usize = seen.document.pools.iter().map(|pool| pool.engines.len()).sum();
            let counts = [(seen.document.gpus.len(), "GPU"), (engines, "engine"), (seen.document.proxies.len(), "proxy")];
            let counted = counts.map(|(count, what)| plural(count, what)).join(theme.dot());
            format!("{counted}{}every {}", theme.dot(), seconds(app.interval))
        }
        None => String::new(),
    };
    let used: usize = spans.iter().map(Span::width).sum();
    let room = width.saturating_sub(used + aside.chars().count());
    if room >= 2 {
        spans.extend([Span::raw(" ".repeat(room)), Span::styled(aside, theme.style(Tone::Dim))]);
    }
    Line::from(spans)
}

fn tab_lines(app: &App, width: usize) -> Vec<Line<'static>> {
    let theme = app.theme;
    let tab = |(index, view): (usize, &View)| {
        let style = if *view == app.view { Style::new().add_modifier(Modifier::REVERSED | Modifier::BOLD) } else { theme.style(Tone::Dim) };
        [Span::styled(format!(" {} {} ", index + 1, view.title()), style), Span::raw(" ")]
    };
    let tabs = View::ALL.iter().enumerate().flat_map(tab).collect::<Vec<_>>();
    vec![Line::from(tabs), Line::styled(theme.rule(width), theme.style(Tone::Dim))]
}

fn body_lines(app: &App, now: Instant, area: Rect) -> Vec<Line<'static>> {
    let (width, height) = (usize::from(area.width), usize::from(area.height));
    let mut lines = match (app.seen(now), app.view) {
        (None, _) => vec![Line::raw(""), Line::raw("  Nothing has come from the control plane yet. Is `headgate serve` running there?")],
        (_, View::Overview) => overview(app, now, width, height),
        (Some(_), _) => one_sheet(app, now, width, height),
    };
    if matches!(app.link, Link::Lost { .. }) {
        // What is shown is of the past.
        lines = lines.into_iter().map(|line| line.patch_style(Style::new().add_modifier(Modifier::DIM))).collect();
    }
    lines
}

/// The sheet of the view with the marked row in sight.
fn one_sheet(app: &App, now: Instant, width: usize, height: usize) -> Vec<Line<'static>> {
    let Some(seen) = app.seen(now) else { return Vec::new() };
    let mut sheet = app.view.sheet(seen);
    let sort = app.sort(app.view);
    sheet.sort(sort);
    if sheet.rows.is_empty() {
        return vec![Line::styled(format!("  {}", sheet.empty), app.theme.style(Tone::Dim))];
    }
    let row = app.row(sheet.rows.len());
    let (head, rows) = sheet.lines(width, sort, Some(row), app.theme);
    let room = height.saturating_sub(1).max(1);
    let first = row.saturating_sub(room - 1);
    std::iter::once(head).chain(rows.into_iter().skip(first).take(room)).collect()
}

/// Every sheet with its title. What does not fit is left out where most rows are, and said so.
fn overview(app: &App, now: Instant, width: usize, height: usize) -> Vec<Line<'static>> {
    let Some(seen) = app.seen(now) else { return Vec::new() };
    let theme = app.theme;
    let sheets: Vec<_> = View::SHEETS.map(|view| (view, view.sheet(seen))).into_iter().collect();
    let counts: Vec<usize> = sheets.iter().map(|(_, sheet)| sheet.rows.len().max(1)).collect();
    // Each sheet has a title, its columns unless it is empty, and a blank line after it.
    let fixed: usize = sheets.iter().map(|(_, sheet)| 2 + usize::from(!sheet.rows.is_empty())).sum();
    let rooms = share_rows(&counts, height.saturating_sub(fixed.saturating_sub(1)));
    let mut lines = Vec::new();
    for ((view, mut sheet), room) in sheets.into_iter().zip(rooms) {
        let sort = app.sort(view);
        sheet.sort(sort);
        let hidden = sheet.rows.len().saturating_sub(room);
        let more = if hidden > 0 { format!("{}{hidden} more with key {}", theme.dot(), view as usize + 1) } else { String::new() };
        lines.push(Line::from(vec![
            Span::styled(sheet.title, theme.style(Tone::Title)),
            Span::styled(format!(" {}{more}", sheet.rows.len()), theme.style(Tone::Dim)),
        ]));
        if sheet.rows.is_empty() {
            lines.push(Line::styled(format!("  {}", sheet.empty), theme.style(Tone::Dim)));
        } else {
            let (head, rows) = sheet.lines(width, sort, None, theme);
            lines.push(head);
            lines.extend(rows.into_iter().take(room));
        }
        lines.push(Line::raw(""));
    }
    lines.pop();
    lines
}

/// Shares `room` rows among lists: none gets more than it has, the longest give way first, each keeps one.
fn share_rows(counts: &[usize], room: usize) -> Vec<usize> {
    let mut shares = vec![1; counts.len()];
    let mut left = room.saturating_sub(counts.len());
    while left > 0 {
        let wanting: Vec<usize> = (0..counts.len()).filter(|at| shares[*at] < counts[*at]).collect();
        let Some(each) = left.checked_div(wanting.len()) else { break };
        for at in wanting {
            let more = each.max(1).min(counts[at] - shares[at]).min(left);
            shares[at] += more;
            left -= more;
        }
    }
    shares
}

fn key_line(app: &App, width: usize) -> Line<'static> {
    let mut spans = Vec::new();
    let mut used = 0;
    for (key, what) in KEYS {
        used += key.len() + what.len() + 4;
        if used > width {
            break;
        }
        let key = Span::styled(format!(" {key} "), Style::new().add_modifier(Modifier::REVERSED));
        spans.extend([key, Span::styled(format!(" {what} "), app.theme.style(Tone::Dim))]);
    }
    Line::from(spans)
}

fn help(frame: &mut Frame<'_>, app: &App) {
    let widest = HELP.iter().map(|(keys, _)| keys.len()).max().unwrap_or(0);
    let row = |(keys, what): &(&str, &str)| Line::from(vec![Span::raw(format!("  {keys:<widest$}  ")), Span::raw((*what).to_owned())]);
    let mut lines = vec![Line::raw(""), Line::styled("  Keys", app.theme.style(Tone::Title)), Line::raw("")];
    lines.extend(HELP.iter().map(row));
    lines.extend([Line::raw(""), Line::styled("  any key goes back", app.theme.style(Tone::Dim)), Line::raw("")]);
    let width = u16::try_from(lines.iter().map(Line::width).max().unwrap_or(0) + 2).unwrap_or(u16::MAX);
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX);
    let whole = frame.area();
    let (width, height) = (width.min(whole.width), height.min(whole.height));
    let area = Rect::new((whole.width - width) / 2, (whole.height - height) / 2, width, height);
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).style(Style::new().add_modifier(Modifier::REVERSED)), area);
}

fn plural(count: usize, what: &str) -> String {
    match (count, what) {
        (1, what) => format!("1 {what}"),
        (count, "proxy") => format!("{count} proxies"),
        (count, what) => format!("{count} {what}s"),
    }
}

/// `0.2 s`, `12 s`, `3 min`.
fn seconds(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 10.0 => format!("{seconds:.1} s"),
        seconds if seconds < 120.0 => format!("{seconds:.0} s"),
        seconds => format!("{:.0} min", seconds / 60.0),
    }
}
