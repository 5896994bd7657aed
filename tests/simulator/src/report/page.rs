//! The frame of a page: head, style, escaping, tables, numbers.

use std::fmt::Write;

/// Colours are variables, so that a page needs no second set of charts for the dark.
const STYLE: &str = "
:root{color-scheme:light dark;--bg:#fbfbfa;--fg:#1c1f23;--muted:#687076;--line:#dfe3e6;--panel:#fff;--good:#2b8a3e;--bad:#c92a2a;--shade:#868e9622;
--c0:#1864ab;--c1:#d9480f;--c2:#2b8a3e;--c3:#862e9c;--c4:#0b7285;--c5:#a61e4d;--c6:#5c940d;--c7:#495057;--heat:24,100,171}
@media(prefers-color-scheme:dark){:root{--bg:#15181b;--fg:#e6e8ea;--muted:#9ba1a6;--line:#31363b;--panel:#1c2024;--good:#69db7c;--bad:#ff8787;--shade:#adb5bd1c;
--c0:#74c0fc;--c1:#ffa94d;--c2:#8ce99a;--c3:#e599f7;--c4:#66d9e8;--c5:#faa2c1;--c6:#c0eb75;--c7:#ced4da;--heat:77,171,247}}
*{box-sizing:border-box}body{margin:0 auto;max-width:1180px;padding:28px 20px 60px;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
h1{font-size:24px;margin:0 0 4px}h2{font-size:17px;margin:34px 0 10px}p{margin:6px 0;max-width:78ch}.muted{color:var(--muted)}
.key{display:grid;grid-template-columns:repeat(auto-fill,minmax(168px,1fr));gap:10px;margin:18px 0}
.key div{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:10px 12px}.key b{display:block;font-size:22px;font-weight:650}
.key span{color:var(--muted);font-size:13px}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
.scroll{overflow-x:auto}th,td{padding:5px 9px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}th:first-child,td:first-child{text-align:left}
th{color:var(--muted);font-weight:600;vertical-align:bottom}.good{color:var(--good)}.bad{color:var(--bad)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(460px,1fr));gap:16px}figure{margin:0;background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:10px 12px}
figcaption{font-weight:600;font-size:14px;margin-bottom:2px}figcaption small{font-weight:400;color:var(--muted);display:block}
svg{display:block;width:100%;height:auto}svg text{fill:var(--muted);font:11px system-ui,sans-serif}.grid{stroke:var(--line);stroke-width:1}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:12px;color:var(--muted)}.legend i{display:inline-block;width:18px;height:0;border-top:2.5px solid;margin:0 5px 3px 0;vertical-align:middle}
@media(max-width:540px){.charts{grid-template-columns:1fr}}";

/// A whole page.
pub(super) fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{}</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n",
        escape(title)
    )
}

/// Text as HTML shows it.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A table; cells are HTML already.
pub(super) fn table(head: &[String], rows: &[Vec<String>]) -> String {
    let mut text = String::from("<div class=\"scroll\"><table><thead><tr>");
    for cell in head {
        let _ = write!(text, "<th>{cell}</th>");
    }
    text.push_str("</tr></thead><tbody>\n");
    for row in rows {
        text.push_str("<tr>");
        for cell in row {
            // A cell that brings its own tag brings its own colour.
            if cell.starts_with("<td") {
                text.push_str(cell);
            } else {
                let _ = write!(text, "<td>{cell}</td>");
            }
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody></table></div>\n");
    text
}

/// Figures that a reader should see first: value and what it is.
pub(super) fn key_figures(figures: &[(String, String)]) -> String {
    let cells: String = figures.iter().map(|(value, what)| format!("<div><b>{value}</b><span>{what}</span></div>")).collect();
    format!("<div class=\"key\">{cells}</div>\n")
}

/// A part as percent.
pub(super) fn percent(part: f64) -> String {
    match part {
        part if (0.9995..1.0).contains(&part) => format!("{:.2} %", (part * 1e4).floor() / 1e2),
        part => format!("{:.1} %", part * 100.0),
    }
}

/// Milliseconds, or seconds when they are many.
pub(super) fn millis(ms: Option<f64>) -> String {
    match ms {
        None => "–".to_owned(),
        Some(ms) if ms >= 10_000.0 => format!("{:.1} s", ms / 1e3),
        Some(ms) => format!("{ms:.0} ms"),
    }
}

/// A number with its unit, or a dash.
pub(super) fn number(value: Option<f64>, digits: usize, unit: &str) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}{unit}"))
}
