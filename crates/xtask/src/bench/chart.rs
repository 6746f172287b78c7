use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::backend::SVGBackend;
use plotters::drawing::IntoDrawingArea;
use plotters::element::{PathElement, Rectangle, Text};
use plotters::style::{Color, IntoFont, RGBColor, WHITE};

use super::Ratio;

const WIDTH: i32 = 900;
const ROW: i32 = 34;
const LEFT: i32 = 300;
/// Pixels from zero to the limit; a bar that passes the line is beyond it.
const TO_LIMIT: i32 = 320;
const LONGEST_BAR: f64 = 1.6;

const GOOD: RGBColor = RGBColor(60, 120, 170);
const BEYOND: RGBColor = RGBColor(190, 70, 50);
const INK: RGBColor = RGBColor(40, 40, 40);

/// One bar a ratio: how much of its limit it uses.
pub fn draw(path: &Path, ratios: &[Ratio]) -> Result<()> {
    let height = ROW * (ratios.len() as i32 + 2);
    let area = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
    draw_on(&area, ratios, height).map_err(|e| anyhow!("{}: {e}", path.display()))
}

type Area<'a> = plotters::drawing::DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw_on(
    area: &Area<'_>,
    ratios: &[Ratio],
    height: i32,
) -> Result<(), Box<dyn std::error::Error>> {
    let small = ("sans-serif", 14).into_font().color(&INK);
    area.fill(&WHITE)?;
    area.draw(&Text::new(
        "part of the limit that is used (shorter is better)",
        (LEFT, 8),
        small.clone(),
    ))?;
    for (row, ratio) in ratios.iter().enumerate() {
        let top = ROW * (row as i32 + 1);
        let end = LEFT + (ratio.used().min(LONGEST_BAR) * f64::from(TO_LIMIT)) as i32;
        let colour = if ratio.holds { GOOD } else { BEYOND };
        let value = format!("{:.2} of {}", ratio.value, ratio.against);
        area.draw(&Text::new(ratio.name.clone(), (10, top + 8), small.clone()))?;
        area.draw(&Rectangle::new([(LEFT, top + 5), (end, top + ROW - 9)], colour.filled()))?;
        area.draw(&Text::new(value, (end + 8, top + 8), small.clone()))?;
    }
    let limit = LEFT + TO_LIMIT;
    area.draw(&PathElement::new([(limit, ROW), (limit, height - ROW)], INK.stroke_width(2)))?;
    area.draw(&Text::new("limit", (limit - 14, height - ROW + 6), small))?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Limit;

    #[test]
    fn a_chart_names_every_ratio() -> Result<()> {
        let scratch = tcmi_tests::Scratch::new("chart")?;
        let path = scratch.join("bench.svg");
        let ratios = [
            Ratio::new("pause", "3 ms".into(), "fork+exec+wait", 4.5, Limit::AtMost(10.0)),
            Ratio::new("bulk", "1 GB/s".into(), "raw TCP bulk", 0.3, Limit::AtLeast(0.6)),
        ];
        draw(&path, &ratios)?;
        let svg = std::fs::read_to_string(path)?;
        assert!(svg.contains("pause") && svg.contains("bulk") && svg.contains("limit"));
        assert!(ratios[0].holds && !ratios[1].holds);
        Ok(())
    }
}
