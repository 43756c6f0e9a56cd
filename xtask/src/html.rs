//! Just enough of HTML to check the built pages: tags with their attributes, and the
//! text between them, with comments and the insides of scripts and styles left out.

/// One piece of a page, in order.
#[derive(Debug, PartialEq)]
pub enum Piece<'a> {
    Open(Tag<'a>),
    Close(&'a str),
    Text(&'a str),
}

/// An opening tag.
#[derive(Debug, PartialEq)]
pub struct Tag<'a> {
    pub name: &'a str,
    attributes: Vec<(&'a str, &'a str)>,
}

impl<'a> Tag<'a> {
    /// The attribute's text as written, entities and all; `""` for a bare name.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.attributes
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|a| a.1)
    }
}

/// Cuts a page into pieces.
pub fn pieces(html: &str) -> Vec<Piece<'_>> {
    let mut found = Vec::new();
    let mut rest = html;
    while !rest.is_empty() {
        let Some(at) = rest.find('<') else {
            found.push(Piece::Text(rest));
            break;
        };
        if at > 0 {
            found.push(Piece::Text(&rest[..at]));
        }
        rest = &rest[at..];
        if let Some(comment) = rest.strip_prefix("<!--") {
            rest = comment.split_once("-->").map_or("", |(_, after)| after);
        } else if let Some(close) = rest.strip_prefix("</") {
            let (name, after) = close.split_once('>').unwrap_or((close, ""));
            found.push(Piece::Close(name.trim()));
            rest = after;
        } else if rest[1..]
            .starts_with(|c: char| c.is_ascii_alphabetic() || c == '!')
        {
            let (tag, after) = tag(&rest[1..]);
            rest = after;
            if tag.name == "script" || tag.name == "style" {
                let end = format!("</{}", tag.name);
                rest = rest.find(&end).map_or("", |at| &rest[at..]);
            }
            found.push(Piece::Open(tag));
        } else {
            found.push(Piece::Text(&rest[..1]));
            rest = &rest[1..];
        }
    }
    found
}

/// Reads `name attribute="value" ...>`; what follows the `>` is left.
fn tag(text: &str) -> (Tag<'_>, &str) {
    let end = |c: char| c.is_whitespace() || c == '>' || c == '/';
    let space = |c: char| c.is_whitespace() || c == '>';
    let (name, mut rest) = text.split_at(text.find(end).unwrap_or(text.len()));
    let mut attributes = Vec::new();
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '/');
        if let Some(after) = rest.strip_prefix('>') {
            return (Tag { name, attributes }, after);
        }
        if rest.is_empty() {
            return (Tag { name, attributes }, "");
        }
        let stop = |c: char| c.is_whitespace() || c == '>' || c == '=';
        let at = rest.find(stop).unwrap_or(rest.len()).max(1);
        let (attribute, after) = rest.split_at(at);
        rest = after.trim_start();
        let Some(value) = rest.strip_prefix('=').map(str::trim_start) else {
            attributes.push((attribute, ""));
            continue;
        };
        let quote = value.chars().next().filter(|c| *c == '"' || *c == '\'');
        let (value, after) = match quote {
            Some(q) => value[1..].split_once(q).unwrap_or((&value[1..], "")),
            None => value.split_at(value.find(space).unwrap_or(value.len())),
        };
        attributes.push((attribute, value));
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_texts_and_what_is_left_out() {
        let html = "<!DOCTYPE html><p id=a class='b > c' hidden>x < y</p>\
                    <!-- <img> --><script src=\"s.js\">if (a<b) {}</script>z";
        let all = pieces(html);
        let Piece::Open(p) = &all[1] else { panic!("{all:?}") };
        assert_eq!(
            (p.name, p.get("id"), p.get("class")),
            ("p", Some("a"), Some("b > c"))
        );
        assert_eq!((p.get("hidden"), p.get("alt")), (Some(""), None));
        let texts = all.iter().filter_map(|p| match p {
            Piece::Text(text) => Some(*text),
            _ => None,
        });
        let texts: Vec<&str> = texts.collect();
        assert_eq!(texts.concat(), "x < yz");
        assert!(all.contains(&Piece::Close("script")));
    }

    #[test]
    fn broken_html_ends() {
        for html in
            ["<", "<a", "<a href", "<a href=\"", "<!--", "</", "<script>", "<a ="]
        {
            pieces(html);
        }
    }
}
