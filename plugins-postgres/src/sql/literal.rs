//! Values made of values, as text: arrays, text search vectors, and `hstore`.

use capabilities::sql::Lexeme;

/// Puts `text` between quotes in which `\` stands before quotes and itself.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

/// Takes what [`quote`] writes.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut chars = text.strip_prefix('"')?.char_indices();
    let inner = text.get(1..)?;
    let mut out = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, inner.get(at + 1..)?)),
            '\\' => out.push(chars.next()?.1),
            c => out.push(c),
        }
    }
    None
}

/// `{"a","b"}`; boxes stand between `;`.
pub(super) fn array(
    elements: impl Iterator<Item = Result<String, String>>,
    separator: char,
) -> Result<String, String> {
    let mut out = String::from("{");
    for (index, element) in elements.enumerate() {
        if index > 0 {
            out.push(separator);
        }
        quote(&mut out, &element?);
    }
    out.push('}');
    Ok(out)
}

/// Gives each element of an array to `take`; what is wrong with it otherwise.
pub(super) fn read_array<E: From<&'static str>>(
    text: &str,
    separator: char,
    mut take: impl FnMut(&str) -> Result<(), E>,
) -> Result<(), E> {
    // Other bounds than from 1 on stand before it.
    let text = match text.strip_prefix('[').and_then(|_| text.split_once('=')) {
        Some((_, text)) => text,
        None => text,
    };
    let inner = text
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'));
    let mut rest = inner.ok_or("no array")?;
    if rest.is_empty() {
        return Ok(());
    }
    loop {
        if rest.starts_with('{') {
            return Err("an array of more than one dimension".into());
        }
        if rest.starts_with('"') {
            let (element, after) = unquote(rest).ok_or("no array")?;
            take(&element)?;
            rest = after;
        } else {
            let end = rest.find(separator).unwrap_or(rest.len());
            let (element, after) = rest.split_at(end);
            if element == "NULL" {
                return Err("an array with NULL in it".into());
            }
            take(element)?;
            rest = after;
        }
        if rest.is_empty() {
            return Ok(());
        }
        rest = rest.strip_prefix(separator).ok_or("no array")?;
    }
}

/// `"key"=>"value", "other"=>NULL`
pub(super) fn hstore(pairs: &[(String, Option<String>)]) -> String {
    let mut out = String::new();
    for (key, value) in pairs {
        if !out.is_empty() {
            out.push(',');
        }
        quote(&mut out, key);
        out.push_str("=>");
        match value {
            Some(value) => quote(&mut out, value),
            None => out.push_str("NULL"),
        }
    }
    out
}

pub(super) fn read_hstore(text: &str) -> Option<Vec<(String, Option<String>)>> {
    let (mut pairs, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let (key, after) = unquote(rest)?;
        let after = after.strip_prefix("=>")?;
        let (value, after) = match after.strip_prefix("NULL") {
            Some(after) => (None, after),
            None => unquote(after).map(|(value, after)| (Some(value), after))?,
        };
        pairs.push((key, value));
        rest = match after {
            "" => "",
            after => after.strip_prefix(", ")?,
        };
    }
    Some(pairs)
}

/// `'fat':2A 'cat':3`
pub(super) fn vector(lexemes: &[Lexeme]) -> Result<String, String> {
    let mut out = String::new();
    for lexeme in lexemes {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push('\'');
        for c in lexeme.data.chars() {
            if matches!(c, '\'' | '\\') {
                out.push(c);
            }
            out.push(c);
        }
        out.push('\'');
        match (lexeme.position, lexeme.weight) {
            (Some(position), weight) => {
                out.push_str(&format!(":{position}"));
                out.extend(weight);
            }
            (None, None) => {}
            (None, Some(_)) => return Err("a lexeme without a position has no weight".to_owned()),
        }
    }
    Ok(out)
}

/// Shape: a lexeme for each position of a word.
pub(super) fn read_vector(text: &str) -> Option<Vec<Lexeme>> {
    let (mut lexemes, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let mut chars = rest.strip_prefix('\'')?.char_indices().peekable();
        let inner = rest.get(1..)?;
        let mut data = String::new();
        let end = loop {
            let (at, c) = chars.next()?;
            let doubled = chars.peek().is_some_and(|(_, next)| *next == c);
            match c {
                '\'' if !doubled => break at + 1,
                '\'' | '\\' => {
                    chars.next();
                    data.push(c);
                }
                c => data.push(c),
            }
        };
        rest = inner.get(end..)?;
        let (positions, after) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = after;
        let word = |position, weight| Lexeme {
            position,
            weight,
            data: data.clone(),
        };
        match positions.strip_prefix(':') {
            None => lexemes.push(word(None, None)),
            Some(positions) => {
                for position in positions.split(',') {
                    let digits = position.trim_end_matches(['A', 'B', 'C', 'D']);
                    let weight = position.get(digits.len()..)?.chars().next();
                    lexemes.push(word(Some(digits.parse().ok()?), weight));
                }
            }
        }
    }
    Some(lexemes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(text: &str) -> Result<Vec<String>, &'static str> {
        let mut elements = Vec::new();
        read_array(text, ',', |element| {
            elements.push(element.to_owned());
            Ok::<_, &'static str>(())
        })?;
        Ok(elements)
    }

    #[test]
    fn arrays_are_read_as_they_are_written() {
        for all in [
            vec![],
            vec![""],
            vec!["NULL", "a b", "{", "}", ",", "\"", "\\", "é\n"],
        ] {
            let text = array(all.iter().map(|text| Ok((*text).to_owned())), ',');
            assert_eq!(elements(&text.unwrap()).unwrap(), all);
        }
        assert_eq!(elements("{1,2}").unwrap(), ["1", "2"]);
        assert_eq!(elements("[0:1]={1,2}").unwrap(), ["1", "2"]);
        for text in ["", "{", "1,2", "{{1},{2}}", "{1,NULL}", "{\"a}", "{\"a\"b}"] {
            assert!(elements(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pairs_and_words_are_read_as_they_are_written() {
        let pairs = vec![
            ("a\"\\".to_owned(), Some(", =>".to_owned())),
            ("b".to_owned(), None),
        ];
        assert_eq!(
            read_hstore(&hstore(&pairs).replace("\",\"b", "\", \"b")),
            Some(pairs)
        );
        assert_eq!(read_hstore(""), Some(vec![]));
        for text in ["a", "\"a\"", "\"a\"=>", "\"a\"=>\"b\",", "\"a\"=>\"b"] {
            assert_eq!(read_hstore(text), None, "{text}");
        }
        let word = |data: &str, position, weight| Lexeme {
            position,
            weight,
            data: data.to_owned(),
        };
        let words = vec![
            word("it's \\", Some(2), Some('A')),
            word("cat", None, None),
            word("é", Some(1), None),
        ];
        assert_eq!(read_vector(&vector(&words).unwrap()), Some(words));
        let both = vec![word("a", Some(1), None), word("a", Some(3), Some('B'))];
        assert_eq!(read_vector("'a':1,3B"), Some(both));
        for text in ["a", "'a", "'a':", "'a':x", "'a':99999999"] {
            assert_eq!(read_vector(text), None, "{text}");
        }
    }
}
