//! Renames as data: a table of rows from a checkpoint's names to a network's.
//!
//! A pattern is a name's segments between dots: `*` is any one segment, `**` any number of
//! them, none included. The right side of a row writes the same wildcards again, and each
//! stands for what the left side's wildcard of the same rank matched.

use std::borrow::Cow;

/// The attention projections as diffusers named them before 0.13, beside the present names.
pub const OLD_ATTENTION: &[(&str, &str)] = &[
    ("**.attentions.*.query.*", "**.attentions.*.to_q.*"),
    ("**.attentions.*.key.*", "**.attentions.*.to_k.*"),
    ("**.attentions.*.value.*", "**.attentions.*.to_v.*"),
    ("**.attentions.*.proj_attn.*", "**.attentions.*.to_out.0.*"),
];

/// Entries that older checkpoints hold and that are no weights.
pub const NON_WEIGHTS: &[&str] = &["**.embeddings.position_ids"];

/// A pattern, or a row of a table, cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyMapError {
    /// A pattern or a name has an empty segment.
    #[error("the key pattern `{pattern}` has an empty segment")]
    EmptySegment {
        /// The pattern.
        pattern: String,
    },
    /// The two sides of a row have different wildcards.
    #[error("the row `{from}` -> `{to}`: expected the same wildcards in the same order on both sides")]
    Wildcards {
        /// The left side.
        from: String,
        /// The right side.
        to: String,
    },
    /// A pattern has more `**` than matching stays cheap with.
    #[error("the key pattern `{pattern}` has more than two `**`")]
    TooManyWildcards {
        /// The pattern.
        pattern: String,
    },
}

/// A pattern over a key's segments.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Exact(String),
    One,
    Many,
}

impl Pattern {
    pub(super) fn parse(pattern: &str) -> Result<Self, KeyMapError> {
        let segments: Vec<_> = pattern
            .split('.')
            .map(|segment| match segment {
                "*" => Segment::One,
                "**" => Segment::Many,
                exact => Segment::Exact(exact.to_string()),
            })
            .collect();
        if segments.contains(&Segment::Exact(String::new())) {
            return Err(KeyMapError::EmptySegment { pattern: pattern.to_string() });
        }
        // matching is exponential in the number of `**`
        if segments.iter().filter(|segment| **segment == Segment::Many).count() > 2 {
            return Err(KeyMapError::TooManyWildcards { pattern: pattern.to_string() });
        }
        Ok(Self { segments })
    }

    pub(super) fn matches(&self, key: &str) -> bool {
        self.captures(key).is_some()
    }

    /// What each wildcard stands for, or `None` where the key does not match.
    fn captures<'k>(&self, key: &'k str) -> Option<Vec<Vec<&'k str>>> {
        let parts: Vec<&str> = key.split('.').collect();
        let mut captures = Vec::new();
        capture(&self.segments, &parts, &mut captures).then_some(captures)
    }

    fn wildcards(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| !matches!(segment, Segment::Exact(_)))
    }

    /// Writes a name, with `captures` where the wildcards stand.
    fn write(&self, captures: &[Vec<&str>]) -> String {
        let mut captures = captures.iter();
        let mut parts: Vec<&str> = Vec::new();
        for segment in &self.segments {
            match segment {
                Segment::Exact(exact) => parts.push(exact),
                Segment::One | Segment::Many => parts.extend(captures.next().into_iter().flatten()),
            }
        }
        parts.join(".")
    }
}

/// Matches greedily for the shortest `**` first; `captures` holds the wildcards so far.
fn capture<'k>(segments: &[Segment], parts: &[&'k str], captures: &mut Vec<Vec<&'k str>>) -> bool {
    let Some((segment, rest)) = segments.split_first() else {
        return parts.is_empty();
    };
    if *segment == Segment::Many {
        for taken in 0..=parts.len() {
            let (inside, after) = parts.split_at(taken);
            let depth = captures.len();
            captures.push(inside.to_vec());
            if capture(rest, after, captures) {
                return true;
            }
            captures.truncate(depth);
        }
        return false;
    }
    let Some((part, after)) = parts.split_first() else {
        return false;
    };
    match segment {
        Segment::Exact(exact) if exact != part => false,
        Segment::Exact(_) => capture(rest, after, captures),
        Segment::One | Segment::Many => {
            captures.push(vec![*part]);
            capture(rest, after, captures)
        }
    }
}

/// A table of renames. The first row that matches a key gives its name; a key that no row
/// matches keeps its own.
#[derive(Debug, Clone, Default)]
pub struct KeyMap {
    rows: Vec<(Pattern, Pattern)>,
}

impl KeyMap {
    /// Reads a table of rows `(pattern, name)`.
    pub fn new<F, T>(rows: impl IntoIterator<Item = (F, T)>) -> Result<Self, KeyMapError>
    where
        F: AsRef<str>,
        T: AsRef<str>,
    {
        let row = |(from, to): (F, T)| {
            let (from, to) = (from.as_ref(), to.as_ref());
            let row = (Pattern::parse(from)?, Pattern::parse(to)?);
            if row.0.wildcards().ne(row.1.wildcards()) {
                return Err(KeyMapError::Wildcards { from: from.to_string(), to: to.to_string() });
            }
            Ok(row)
        };
        rows.into_iter().map(row).collect::<Result<_, _>>().map(|rows| Self { rows })
    }

    /// [`KeyMap::new`] for a constant table.
    pub fn table(rows: &[(&str, &str)]) -> Result<Self, KeyMapError> {
        Self::new(rows.iter().copied())
    }

    /// The name of `key` by this table.
    pub fn apply<'k>(&self, key: &'k str) -> Cow<'k, str> {
        self.rows
            .iter()
            .find_map(|(from, to)| from.captures(key).map(|captures| to.write(&captures)))
            .map_or(Cow::Borrowed(key), Cow::Owned)
    }
}
