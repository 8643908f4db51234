//! A heat map of |a − b|: blocks of elements are reduced by their maximum, so that the largest is never
//! lost. The picture is a PNG in the page; the figures under it travel beside it, two characters a cell.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use llorch_trace::{Point, Tensor};

use crate::compare::is_visible;

/// One picture: panels (heads) side by side, each of blocks of tokens by blocks of channels.
#[derive(Debug, PartialEq)]
pub struct Heat {
    /// Panels, their rows and columns in cells.
    pub panels: usize,
    pub rows: usize,
    pub columns: usize,
    /// Panels in a row of the picture.
    pub across: usize,
    /// What the axes of a panel hold.
    pub height: usize,
    pub width: usize,
    /// By panel, row, column; None where nothing is compared (masked).
    pub cells: Vec<Option<f64>>,
}

/// Differences smaller than the largest by this factor are as pale as can be.
const RANGE: f64 = 1e4;
/// More columns than this nobody tells apart.
const WIDEST: usize = 256;
/// Codes of a cell: nothing there, exactly zero, not finite; between them a logarithmic scale.
const LEVELS: usize = 4096;
const CODES: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The differences of two tensors of one shape, element by element; None where nothing is compared,
/// infinite where one is not finite and the other is not the same.
pub fn differences(point: Point, a: &Tensor, b: &Tensor) -> Option<Vec<Option<f64>>> {
    if a.shape != b.shape {
        return None;
    }
    let (x, y) = (a.to_f64(), b.to_f64());
    let one = |i: usize| {
        if !is_visible(point.stage, &a.shape, i) {
            return None;
        }
        let d = (x[i] - y[i]).abs();
        let same = x[i] == y[i] || (x[i].is_nan() && y[i].is_nan());
        Some(if same {
            0.0
        } else if d.is_finite() {
            d
        } else {
            f64::INFINITY
        })
    };
    Some((0..x.len()).map(one).collect())
}

impl Heat {
    /// At most about `budget` cells; None for a single element, of which there is no picture.
    pub fn new(shape: &[usize], differences: &[Option<f64>], budget: usize) -> Option<Heat> {
        let (panels, height, width) = match *shape {
            [h, t, d] => (h, t, d),
            [t, d] => (1, t, d),
            // A vector is folded into lines.
            [n] if n > 1 => {
                let width = ((n as f64).sqrt() * 2.0).ceil() as usize;
                (1, n.div_ceil(width), width)
            }
            _ => return None,
        };
        if panels * height * width == 0 {
            return None;
        }
        // The longer axis is folded first: a few tokens stay apart, whatever the vocabulary's size.
        let room = (budget / panels).max(16);
        let side = (room as f64).sqrt() as usize;
        let (rows, columns) = match (height <= side, width <= side) {
            (true, _) => (height, width.min(room / height).min(WIDEST)),
            (false, true) => (height.min(room / width), width),
            (false, false) => (side, side),
        };
        let mut cells: Vec<Option<f64>> = vec![None; panels * rows * columns];
        for (i, d) in differences.iter().enumerate().filter_map(|(i, d)| Some((i, (*d)?))) {
            let (panel, rest) = (i / (height * width), i % (height * width));
            let (r, c) = (rest / width * rows / height, rest % width * columns / width);
            let cell = &mut cells[(panel * rows + r) * columns + c];
            *cell = Some(cell.map_or(d, |kept: f64| kept.max(d)));
        }
        let shape = (rows as f64 * panels as f64 / columns as f64).sqrt();
        let across = (shape * 1.3).round().clamp(1.0, panels as f64) as usize;
        // As even as so many lines allow.
        let across = panels.div_ceil(panels.div_ceil(across));
        Some(Heat { panels, rows, columns, across, height, width, cells })
    }

    fn scale(&self) -> (f64, f64) {
        let finite = self.cells.iter().flatten().filter(|v| v.is_finite() && **v > 0.0);
        finite.fold((f64::INFINITY, 0.0), |(low, high), v| (v.min(low), v.max(high)))
    }

    /// The largest finite difference.
    pub fn largest(&self) -> f64 {
        self.scale().1
    }

    /// Two characters a cell, and the ends of their scale.
    pub fn codes(&self) -> (String, f64, f64) {
        let (low, high) = self.scale();
        let span = (high / low).ln();
        let code = |cell: &Option<f64>| match *cell {
            None => 0,
            Some(0.0) => 1,
            Some(v) if !v.is_finite() => LEVELS - 1,
            Some(v) => {
                let part = if span > 0.0 { (v / low).ln() / span } else { 1.0 };
                2 + (part * (LEVELS - 4) as f64).round() as usize
            }
        };
        let mut text = String::with_capacity(2 * self.cells.len());
        for code in self.cells.iter().map(code) {
            text.push(CODES[code / 64] as char);
            text.push(CODES[code % 64] as char);
        }
        if high == 0.0 { (text, 0.0, 0.0) } else { (text, low, high) }
    }

    /// In cells: one empty line between panels.
    pub fn size(&self) -> (usize, usize) {
        let down = self.panels.div_ceil(self.across);
        (self.across * (self.columns + 1) - 1, down * (self.rows + 1) - 1)
    }

    /// Where a cell is in the picture: left and top.
    fn place(&self, panel: usize, row: usize, column: usize) -> (usize, usize) {
        (
            panel % self.across * (self.columns + 1) + column,
            panel / self.across * (self.rows + 1) + row,
        )
    }

    /// A PNG as a data URI; empty where it could not be made.
    pub fn png(&self) -> String {
        let (width, height) = self.size();
        let high = self.largest();
        let mut pixels = vec![0u8; width * height];
        for (i, cell) in self.cells.iter().enumerate() {
            let (panel, rest) = (i / (self.rows * self.columns), i % (self.rows * self.columns));
            let (x, y) = self.place(panel, rest / self.columns, rest % self.columns);
            pixels[y * width + x] = match *cell {
                None => 0,
                Some(0.0) => 1,
                Some(v) if !v.is_finite() => SHADES as u8,
                Some(v) => {
                    let part = 1.0 + (v / high).log10() / RANGE.log10();
                    2 + (part.clamp(0.0, 1.0) * (SHADES - 3) as f64).round() as u8
                }
            };
        }
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::High);
        let (colours, alphas) = palette();
        encoder.set_palette(colours);
        encoder.set_trns(alphas);
        let written = encoder.write_header().and_then(|mut w| w.write_image_data(&pixels));
        match written {
            Ok(()) => format!("data:image/png;base64,{}", STANDARD.encode(&bytes)),
            Err(_) => String::new(),
        }
    }
}

const SHADES: usize = 66;

/// From hardly there to strong, on white and on black alike: low differences are transparent.
fn palette() -> (Vec<u8>, Vec<u8>) {
    let stops: [([f64; 3], f64); 4] = [
        ([96.0, 125.0, 175.0], 0.12),
        ([112.0, 96.0, 190.0], 0.45),
        ([205.0, 62.0, 110.0], 0.85),
        ([226.0, 30.0, 30.0], 1.0),
    ];
    // Nothing there; exactly zero.
    let mut colours = vec![0, 0, 0, 128, 128, 128];
    let mut alphas = vec![0, 14];
    for i in 0..SHADES - 2 {
        let at = i as f64 / (SHADES - 3) as f64 * (stops.len() - 1) as f64;
        let stop = (at.floor() as usize).min(stops.len() - 2);
        let part = at - stop as f64;
        let mix = |x: f64, y: f64| x + (y - x) * part;
        let ((from, a), (to, b)) = (stops[stop], stops[stop + 1]);
        colours.extend((0..3).map(|c| mix(from[c], to[c]).round() as u8));
        alphas.push((mix(a, b) * 255.0).round() as u8);
    }
    // Not finite.
    colours.extend([0, 0, 0]);
    alphas.push(255);
    (colours, alphas)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(heat: &Heat) -> Vec<f64> {
        let (text, low, high) = heat.codes();
        let digit = |c: u8| CODES.iter().position(|d| *d == c).unwrap();
        let cell = |pair: &[u8]| match digit(pair[0]) * 64 + digit(pair[1]) {
            0 => f64::NAN,
            1 => 0.0,
            4095 => f64::INFINITY,
            q => low * (high / low).powf((q - 2) as f64 / 4092.0),
        };
        text.as_bytes().chunks(2).map(cell).collect()
    }

    #[test]
    fn however_much_is_folded_the_largest_stays() {
        let shape = [16, 21, 1024];
        let n: usize = shape.iter().product();
        for place in [0, 77_777, n - 1] {
            let mut all = vec![Some(1e-6); n];
            all[place] = Some(3.5);
            for budget in [64, 2048, 100_000] {
                let heat = Heat::new(&shape, &all, budget).unwrap();
                assert!(
                    heat.cells.len() <= budget.max(16 * 16),
                    "{} of {budget}",
                    heat.cells.len()
                );
                assert_eq!(heat.largest(), 3.5);
                let read = decoded(&heat);
                let largest = read.iter().copied().fold(0.0, f64::max);
                assert!((largest - 3.5).abs() < 1e-9 && read.contains(&largest));
            }
        }
    }

    #[test]
    fn a_small_tensor_is_shown_whole_and_read_back_within_half_a_percent() {
        let all: Vec<Option<f64>> = (0..24).map(|i| Some(10f64.powi(i % 7 - 6))).collect();
        let heat = Heat::new(&[2, 3, 4], &all, 2048).unwrap();
        assert_eq!((heat.panels, heat.rows, heat.columns), (2, 3, 4));
        let logits = Heat::new(&[7, 50257], &vec![Some(1.0); 7 * 50257], 4096).unwrap();
        assert_eq!((logits.rows, logits.columns), (7, 256));
        assert_eq!(Heat::new(&[4, 7, 7], &[Some(1.0); 196], 4096).unwrap().across, 2);
        for (read, wrote) in decoded(&heat).iter().zip(&all) {
            assert!((read / wrote.unwrap() - 1.0).abs() < 5e-3, "{read} {wrote:?}");
        }
        assert!(heat.png().starts_with("data:image/png;base64,iVBOR"));
        assert_eq!(Heat::new(&[], &[Some(1.0)], 64), None);
    }

    #[test]
    fn what_is_masked_is_no_difference_and_what_is_not_finite_is_one() {
        let point: Point = "h.0.attn.scores".parse().unwrap();
        let a = Tensor::f32(vec![1, 2, 2], vec![1.0, f32::NEG_INFINITY, f32::NAN, 2.0]);
        let b = Tensor::f32(vec![1, 2, 2], vec![1.0, 5.0, 1.0, 2.5]);
        let found = differences(point, &a, &b).unwrap();
        assert_eq!(found, [Some(0.0), None, Some(f64::INFINITY), Some(0.5)]);
        let heat = Heat::new(&[1, 2, 2], &found, 64).unwrap();
        assert!(decoded(&heat)[1].is_nan() && decoded(&heat)[2].is_infinite());
    }
}
