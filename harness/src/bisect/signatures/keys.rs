//! Which row of a cache stands where: a row for a row.

use super::site::Found;

/// What stands in a row: some row of what should be there, or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    Row(usize),
    Zero,
    Unknown,
}

/// Names the kind of a map of rows; `rows[s]` is what stands at s.
pub fn classify(rows: &[Holds], found: &mut Found) {
    let n = rows.len();
    let wrong: Vec<usize> = (0..n).filter(|&s| rows[s] != Holds::Row(s)).collect();
    if wrong.is_empty() || rows.contains(&Holds::Unknown) {
        return;
    }
    if wrong.iter().all(|&s| rows[s] == Holds::Zero) {
        return found
            .add("cache_row_missing", format!("with {} of the cache missing", told(&wrong)));
    }
    let places: Option<Vec<usize>> =
        rows.iter().map(|r| if let Holds::Row(from) = r { Some(*from) } else { None }).collect();
    // Shifted by one distance, round the end or with something lost there.
    let by = |s: usize| places.as_ref().map(|p| (s + n - p[s]) % n);
    let distance = wrong.iter().map(|&s| by(s)).collect::<Option<Vec<_>>>();
    if let Some(distance) = distance
        && wrong.len() + 1 >= n
        && n > 1
        && distance.iter().all(|d| *d == distance[0])
        && distance[0] != 0
        && n > 2
    {
        let by = distance[0];
        let by = if by <= n / 2 { by as isize } else { by as isize - n as isize };
        return found.add("cache_shifted", format!("with the cache shifted by {by:+} rows"));
    }
    let older = |s: usize| matches!(rows[s], Holds::Row(from) if from < s);
    if wrong.iter().all(|&s| older(s) || rows[s] == Holds::Zero) && wrong.iter().any(|&s| older(s))
    {
        let stale: Vec<String> = wrong
            .iter()
            .filter_map(|&s| match rows[s] {
                Holds::Row(from) => Some(format!("row {s} that of {from}")),
                _ => None,
            })
            .take(3)
            .collect();
        return found
            .add("cache_stale", format!("with an older row in the cache: {}", stale.join(", ")));
    }
    // Each row once, in another order.
    if let Some(mut places) = places {
        places.sort_unstable();
        places.dedup();
        if places.len() == n {
            found.add("cache_shifted", "with the rows of the cache in another order".to_string());
        }
    }
}

fn told(rows: &[usize]) -> String {
    match rows {
        [one] => format!("row {one}"),
        [first, .., last] if last - first + 1 == rows.len() => format!("rows {first} to {last}"),
        _ => format!("{} rows", rows.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::Holds::{Row, Unknown, Zero};
    use super::*;

    fn slug(rows: &[Holds]) -> Option<&'static str> {
        let mut found = Found::default();
        classify(rows, &mut found);
        found.all.first().and_then(|e| e.slug)
    }

    #[test]
    fn maps_of_rows_have_names() {
        assert_eq!(slug(&[Row(0), Row(1), Row(1)]), Some("cache_stale"));
        assert_eq!(slug(&[Row(0), Row(0)]), Some("cache_stale"));
        assert_eq!(slug(&[Row(0), Row(1), Row(1), Row(1)]), Some("cache_stale"));
        assert_eq!(slug(&[Row(2), Row(0), Row(1)]), Some("cache_shifted"));
        assert_eq!(slug(&[Row(1), Row(2), Row(0)]), Some("cache_shifted"));
        assert_eq!(slug(&[Row(0), Zero, Row(2)]), Some("cache_row_missing"));
        assert_eq!(slug(&[Row(0), Row(1), Row(2)]), None);
        assert_eq!(slug(&[Row(0), Unknown, Row(1)]), None);
    }
}
