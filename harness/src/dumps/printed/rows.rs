//! The brackets below a header: three levels of them, each list with a `...` where its middle was
//! left out. What comes after a `...` is the end of its axis.

/// A list whose middle may be missing.
#[derive(Debug, Clone)]
struct Gapped<T> {
    items: Vec<T>,
    /// How many items stand before the `...`.
    gap: Option<usize>,
}

impl<T> Default for Gapped<T> {
    fn default() -> Self {
        Gapped { items: Vec::new(), gap: None }
    }
}

impl<T> Gapped<T> {
    fn leave_out(&mut self) -> Result<(), String> {
        match self.gap.replace(self.items.len()) {
            None => Ok(()),
            Some(_) => Err("two `...` in one list".into()),
        }
    }

    /// Each item with its place on an axis of `n`.
    fn placed(self, n: usize) -> Result<Vec<(usize, T)>, String> {
        let held = self.items.len();
        let fits = if self.gap.is_some() { held <= n } else { held == n };
        if !fits {
            return Err(format!("{held} are printed on an axis of {n}"));
        }
        let gap = self.gap.unwrap_or(held);
        let place = |i: usize| if i < gap { i } else { n - held + i };
        Ok(self.items.into_iter().enumerate().map(|(i, item)| (place(i), item)).collect())
    }
}

type Row = Gapped<(f64, f64)>;

/// Reads a node's brackets, line by line.
#[derive(Debug)]
pub struct Rows {
    ne: [usize; 4],
    depth: usize,
    /// Slices along the slowest axis that are complete.
    slices: usize,
    planes: Gapped<Gapped<Row>>,
    rows: Gapped<Row>,
    row: Row,
    values: Vec<(usize, f64)>,
    rounding: f64,
}

impl Rows {
    pub fn new(ne: [usize; 4]) -> Rows {
        Rows {
            ne,
            depth: 0,
            slices: 0,
            planes: Gapped::default(),
            rows: Gapped::default(),
            row: Row::default(),
            values: Vec::new(),
            rounding: 0.0,
        }
    }

    /// Whether a line can belong to the brackets.
    pub fn is_line(line: &str) -> bool {
        let line = line.trim_start();
        line.starts_with(['[', ']']) || line.starts_with("...")
    }

    /// Takes one line. The error is a sentence.
    pub fn take(&mut self, line: &str) -> Result<(), String> {
        let mut word = String::new();
        for c in line.chars().chain([',']) {
            match c {
                '[' | ']' | ',' => {
                    self.word(word.trim())?;
                    word.clear();
                    match c {
                        '[' => self.open()?,
                        ']' => self.close()?,
                        _ => {}
                    }
                }
                _ => word.push(c),
            }
        }
        Ok(())
    }

    fn word(&mut self, word: &str) -> Result<(), String> {
        match (word, self.depth) {
            ("", _) => Ok(()),
            ("...", 1) => self.planes.leave_out(),
            ("...", 2) => self.rows.leave_out(),
            ("...", 3) => self.row.leave_out(),
            (number, 3) => {
                let value: f64 = number.parse().map_err(|_| format!("{number:?} is no number"))?;
                let decimals = number.split_once('.').map_or(0, |(_, digits)| digits.len());
                let rounding = 0.5 * 10f64.powi(-(decimals.min(30) as i32));
                self.row.items.push((value, rounding));
                Ok(())
            }
            (other, depth) => Err(format!("{other:?} inside of {depth} brackets")),
        }
    }

    fn open(&mut self) -> Result<(), String> {
        self.depth += 1;
        match self.depth {
            1..=3 => Ok(()),
            _ => Err("more than three brackets deep".into()),
        }
    }

    fn close(&mut self) -> Result<(), String> {
        match self.depth {
            3 => self.rows.items.push(std::mem::take(&mut self.row)),
            2 => self.planes.items.push(std::mem::take(&mut self.rows)),
            1 => self.slice()?,
            _ => return Err("a bracket that was never opened".into()),
        }
        self.depth -= 1;
        Ok(())
    }

    fn slice(&mut self) -> Result<(), String> {
        let [n0, n1, n2, n3] = self.ne;
        if self.slices == n3 {
            return Err(format!("more than {n3} slices"));
        }
        for (i2, plane) in std::mem::take(&mut self.planes).placed(n2)? {
            for (i1, row) in plane.placed(n1)? {
                for (i0, (value, rounding)) in row.placed(n0)? {
                    let place = ((self.slices * n2 + i2) * n1 + i1) * n0 + i0;
                    self.values.push((place, value));
                    // A number that isn't finite has no decimals, and needs none.
                    self.rounding =
                        self.rounding.max(if value.is_finite() { rounding } else { 0.0 });
                }
            }
        }
        self.slices += 1;
        Ok(())
    }

    pub fn is_complete(&self) -> bool {
        self.depth == 0 && self.slices == self.ne[3]
    }

    /// The elements by their place, and how far each may be from what was meant.
    pub fn finish(self) -> Result<(Vec<(usize, f64)>, f64), String> {
        match self.is_complete() {
            true => Ok((self.values, self.rounding)),
            false => Err("its elements end before the last bracket".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(ne: [usize; 4], text: &str) -> Result<(Vec<(usize, f64)>, f64), String> {
        let mut rows = Rows::new(ne);
        for line in text.lines() {
            rows.take(line)?;
        }
        rows.finish()
    }

    #[test]
    fn what_stands_after_the_dots_is_the_end_of_its_axis() {
        let text = "[\n [\n  [ 1.0, 2.0, ..., 8.0 ],\n  ...,\n  [ 9.0, 10.0, ..., 16.0 ],\n ],\n]";
        let (values, rounding) = read([8, 5, 1, 1], text).unwrap();
        let expected = [(0, 1.), (1, 2.), (7, 8.), (32, 9.), (33, 10.), (39, 16.)];
        assert_eq!((values.as_slice(), rounding), (expected.as_slice(), 0.05));
        // The oldest form: nothing after the dots.
        let (values, rounding) = read([8, 1, 1, 1], "[\n[\n[ -0.0181, nan, ...],\n],\n]").unwrap();
        assert_eq!((values[0], values.len(), rounding), ((0, -0.0181), 2, 0.00005));
    }

    #[test]
    fn what_does_not_fit_the_shape_is_an_error() {
        for (ne, text, expected) in [
            ([3, 1, 1, 1], "[[[1.0, 2.0]]]", "2 are printed on an axis of 3"),
            ([1, 1, 1, 1], "[[[1.0, ..., 2.0, 3.0]]]", "3 are printed on an axis of 1"),
            ([1, 1, 1, 1], "[[[1.0]]][[[1.0]]]", "more than 1 slices"),
            ([1, 1, 2, 1], "[[[1.0]]]", "1 are printed on an axis of 2"),
            ([1, 1, 1, 1], "[[[1.0]", "end before"),
            ([1, 1, 1, 1], "[[[[", "more than three"),
            ([1, 1, 1, 1], "]", "never opened"),
            ([1, 1, 1, 1], "[[[1.0x]]]", "no number"),
            ([1, 1, 1, 1], "[ 1.0", "inside of 1"),
            ([9, 1, 1, 1], "[[[1.0, ..., ..., 2.0]]]", "two `...`"),
        ] {
            let error = read(ne, text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
