//! Line charts over time, as SVG.

use std::fmt::Write;

use super::page::escape;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 210.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 24.0;

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stroke {
    /// Thick: what counts.
    Bold,
    /// Thin.
    Thin,
    /// Dashed: what was asked for.
    Dashed,
}

/// A line.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) label: String,
    /// Colour, as the position of a class.
    pub(super) colour: usize,
    pub(super) stroke: Stroke,
    /// Seconds and values; a value that is not a number leaves a gap.
    pub(super) points: Vec<(f64, f64)>,
}

/// A chart.
#[derive(Clone, Debug, Default)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) note: String,
    pub(super) lines: Vec<Line>,
    /// A horizontal mark: value and name.
    pub(super) mark: Option<(f64, String)>,
    /// A shaded span, in seconds.
    pub(super) shade: Option<(f64, f64)>,
    /// Last second.
    pub(super) seconds: f64,
    /// Top of the scale; 0: as high as the lines.
    pub(super) top: f64,
}

// === impl Chart ===

impl Chart {
    /// The chart as a figure with title and legend.
    pub(super) fn figure(&self) -> String {
        let top = self.scale();
        let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", escape(&self.title));
        if let Some((from, to)) = self.shade {
            let (from, to) = (self.x(from), self.x(to));
            let _ = write!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"var(--shade)\"/>",
                to - from,
                HEIGHT - TOP - BOTTOM
            );
        }
        self.axes(&mut svg, top);
        for line in &self.lines {
            self.line(&mut svg, line, top);
        }
        svg.push_str("</svg>");
        let note = if self.note.is_empty() { String::new() } else { format!("<small>{}</small>", escape(&self.note)) };
        format!("<figure><figcaption>{}{note}</figcaption>{svg}{}</figure>\n", escape(&self.title), self.legend())
    }

    fn legend(&self) -> String {
        let entry = |line: &Line| {
            let style = if line.stroke == Stroke::Dashed { "dashed" } else { "solid" };
            let width = if line.stroke == Stroke::Thin { "1.2px" } else { "2.5px" };
            let colour = line.colour % 8;
            format!(
                "<span><i style=\"border-color:var(--c{colour});border-top-style:{style};border-top-width:{width}\"></i>{}</span>",
                escape(&line.label)
            )
        };
        if self.lines.len() < 2 {
            return String::new();
        }
        format!("<div class=\"legend\">{}</div>", self.lines.iter().map(entry).collect::<String>())
    }

    /// The next round number above everything that is shown.
    fn scale(&self) -> f64 {
        if self.top > 0.0 {
            return self.top;
        }
        let values = self.lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value).filter(|value| value.is_finite());
        let highest = values.chain(self.mark.as_ref().map(|(value, _)| *value)).fold(1e-9, f64::max);
        let unit = libm::pow(10.0, libm::floor(libm::log10(highest)));
        [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0].into_iter().map(|step| step * unit).find(|top| *top >= highest).unwrap_or(highest)
    }

    fn x(&self, second: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (second / self.seconds.max(1e-9)).clamp(0.0, 1.0)
    }

    fn y(value: f64, top: f64) -> f64 {
        TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - (value / top).clamp(0.0, 1.0))
    }

    fn axes(&self, svg: &mut String, top: f64) {
        for step in 0..=4 {
            let value = top * f64::from(step) / 4.0;
            let y = Self::y(value, top);
            let _ = write!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>", WIDTH - RIGHT);
            let _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LEFT - 6.0, y + 3.5, short(value));
        }
        let step = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 3600.0].into_iter().find(|step| self.seconds / step <= 9.0);
        let step = step.unwrap_or(self.seconds);
        let mut second = 0.0;
        while second <= self.seconds {
            let _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{second:.0} s</text>", self.x(second), HEIGHT - 7.0);
            second += step;
        }
        if let Some((value, name)) = &self.mark {
            let y = Self::y(*value, top);
            let _ = write!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{right:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"var(--muted)\" stroke-dasharray=\"2 3\"/>\
                 <text x=\"{right:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                y - 4.0,
                escape(name),
                right = WIDTH - RIGHT
            );
        }
    }

    fn line(&self, svg: &mut String, line: &Line, top: f64) {
        let mut path = String::new();
        let mut is_down = false;
        for (second, value) in &line.points {
            if !value.is_finite() {
                is_down = false;
                continue;
            }
            let _ = write!(path, "{}{:.1} {:.1}", if is_down { 'L' } else { 'M' }, self.x(*second), Self::y(*value, top));
            is_down = true;
        }
        let (width, dash) = match line.stroke {
            Stroke::Bold => (2.0, ""),
            Stroke::Thin => (1.0, ""),
            Stroke::Dashed => (1.3, " stroke-dasharray=\"4 3\""),
        };
        let colour = line.colour % 8;
        let _ = write!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"var(--c{colour})\" stroke-width=\"{width}\" stroke-linejoin=\"round\" \
             stroke-linecap=\"round\"{dash}/>"
        );
    }
}

/// A value on an axis: `1.5k`, `0.75`.
fn short(value: f64) -> String {
    let trimmed = |text: String| text.trim_end_matches('0').trim_end_matches('.').to_owned();
    match value {
        value if value >= 1e6 => trimmed(format!("{:.2}", value / 1e6)) + "M",
        value if value >= 1e3 => trimmed(format!("{:.2}", value / 1e3)) + "k",
        value if value >= 10.0 => trimmed(format!("{value:.1}")),
        value if value > 0.0 => trimmed(format!("{value:.3}")),
        _ => "0".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_in_the_values_is_a_gap_in_the_line() {
        let points = vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 1.0), (3.0, 2.0)];
        let line = Line { label: "a & b".to_owned(), colour: 0, stroke: Stroke::Bold, points };
        let chart = Chart { title: "t".to_owned(), lines: vec![line], seconds: 4.0, ..Chart::default() };
        let figure = chart.figure();
        assert_eq!(figure.matches('M').count(), 2, "{figure}");
        assert!(!figure.contains("NaN"), "{figure}");
    }

    #[test]
    fn axes_are_labelled_with_round_numbers() {
        assert_eq!([0.0, 0.25, 12.5, 1500.0, 2e6].map(short), ["0", "0.25", "12.5", "1.5k", "2M"]);
    }
}
