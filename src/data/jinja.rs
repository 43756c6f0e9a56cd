//! A chat template's source, made fit for the renderer.
use super::rows::RowResult;

/// Bytes of a template; the longest that models come with have some 30,000.
const LONGEST: usize = 1 << 20;
/// Bytes of one tag without its strings. What a tag says is worked on by recursion.
const LONGEST_TAG: usize = 16 << 10;
/// `{% elif %}`s, each of which stands in the one before.
const MOST_ELIFS: usize = 2000;

/// The source as Jinja2 takes it, with what only Transformers has replaced:
///
/// - CR and CRLF become LF.
/// - `{% generation %}` marks the assistant's words. Here they are found by
///   [`training_text`](super::chat::ChatTemplate::training_text), and the tag becomes
///   one that changes nothing.
/// - What `{% set %}` keeps passes the filter `kept` (`kept_in_namespace` where it goes
///   into a namespace), which refuses values that nothing could print.
///
/// The error says what is too long.
pub(super) fn prepare(source: &str) -> RowResult<String> {
    if source.len() > LONGEST {
        let n = source.len();
        return Err(format!("it has {n} bytes; expected at most {LONGEST}"));
    }
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut text = String::with_capacity(source.len() + source.len() / 4);
    let (mut rest, mut elifs) = (source.as_str(), 0);
    while let Some(at) = rest.find('{') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        let (len, plain) = tag(rest);
        if plain > LONGEST_TAG {
            return Err(format!(
                "a tag of it has {plain} bytes without its strings; expected at most \
                 {LONGEST_TAG}"
            ));
        }
        let piece = &rest[..len];
        elifs += usize::from(word(piece).starts_with("elif"));
        if elifs > MOST_ELIFS {
            return Err(format!("it has more than {MOST_ELIFS} `elif`s"));
        }
        match rest.starts_with("{%") {
            true => text.push_str(&statement(piece)),
            false => text.push_str(piece),
        }
        rest = &rest[len..];
        if word(piece) == "raw" {
            let end = raw_end(rest);
            text.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    Ok(text + rest)
}

/// How long the tag is with which `text` begins, its end included, and how much of
/// that is no string. A comment is no tag; neither is a lone brace.
fn tag(text: &str) -> (usize, usize) {
    let end = match text.as_bytes().get(1) {
        Some(b'{') => "}}",
        Some(b'%') => "%}",
        Some(b'#') => {
            return (text[2..].find("#}").map_or(text.len(), |e| e + 4), 0);
        }
        _ => return (1, 0),
    };
    let (mut plain, mut quote, mut nested) = (0, None, 0_usize);
    let mut chars = text.char_indices().skip(2);
    while let Some((at, c)) = chars.next() {
        match quote {
            Some(q) if c == q => quote = None,
            Some(_) if c == '\\' => {
                chars.next();
            }
            Some(_) => continue,
            None if matches!(c, '\'' | '"') => quote = Some(c),
            None if nested == 0 && text[at..].starts_with(end) => {
                return (at + 2, plain);
            }
            // As in Jinja2, `}}` closes what was opened before it closes the tag.
            None if matches!(c, '{' | '[' | '(') => nested += 1,
            None if matches!(c, '}' | ']' | ')') => {
                nested = nested.saturating_sub(1)
            }
            None => {}
        }
        plain += c.len_utf8();
    }
    (text.len(), plain)
}

/// What a statement's tag says.
fn word(tag: &str) -> &str {
    let inner = tag.strip_prefix("{%").and_then(|t| t.strip_suffix("%}"));
    inner.unwrap_or_default().trim_matches(['-', '+']).trim()
}

fn raw_end(text: &str) -> usize {
    let ends = text.match_indices("{%").map(|(at, _)| at);
    let mut ends = ends.filter(|&at| {
        let tag = &text[at..];
        tag.find("%}").is_some_and(|end| word(&tag[..end + 2]) == "endraw")
    });
    ends.next().unwrap_or(text.len())
}

/// A statement's tag, rewritten where need be.
fn statement(tag: &str) -> String {
    match word(tag) {
        "generation" => return tag.replace("generation", "if true"),
        "endgeneration" => return tag.replace("endgeneration", "endif"),
        _ => {}
    }
    let Some(inner) = tag.strip_prefix("{%").and_then(|t| t.strip_suffix("%}"))
    else {
        return tag.to_string();
    };
    let open = inner.len() - inner.trim_start_matches(['-', '+']).len();
    let close = inner.trim_end_matches(['-', '+']).len().max(open);
    let (before, body, after) =
        (&inner[..open], &inner[open..close], &inner[close..]);
    let set = body.trim_start().strip_prefix("set");
    let set = set.filter(|rest| rest.starts_with(char::is_whitespace));
    let Some((names, value)) = set.and_then(|rest| rest.split_once('=')) else {
        return tag.to_string();
    };
    let name =
        |c: char| c.is_alphanumeric() || c.is_whitespace() || "_.,".contains(c);
    if !names.chars().all(name) || value.trim().is_empty() {
        return tag.to_string();
    }
    let kept = if names.contains('.') { "kept_in_namespace" } else { "kept" };
    // An unfinished value (`= (`) must not swallow what is put around it.
    format!("{{%{before} set{names}=({value})|{kept} {after}%}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(source: &str) {
        assert_eq!(prepare(source).as_deref(), Ok(source));
    }

    #[test]
    fn generation_tags_keep_their_whitespace_control() {
        let source =
            "a {%- generation -%} b {% endgeneration %}{% if x %}c{% endif %}";
        let expected = "a {%- if true -%} b {% endif %}{% if x %}c{% endif %}";
        assert_eq!(prepare(source).as_deref(), Ok(expected));
        same("{% unclosed");
        same("{# {% generation %} #}{{ '{% generation %}' }}{");
        same("{% raw %}{% generation %}{{ {% endraw -%} {{ {'a': {'b': 1}} }}x");
    }

    #[test]
    fn line_ends_are_jinjas() {
        assert_eq!(prepare("a\r\nb\rc\n\r").as_deref(), Ok("a\nb\nc\n\n"));
    }

    #[test]
    fn what_is_set_is_looked_at() {
        let of = |source: &str| prepare(source).expect("a short source");
        assert_eq!(of("{% set a = 1 %}"), "{% set a =( 1 )|kept %}");
        assert_eq!(of("{%- set a, b=x == 1 -%}"), "{%- set a, b=(x == 1 )|kept -%}");
        let kept = "{% set n.a =( '%}=' )|kept_in_namespace %}";
        assert_eq!(of("{% set n.a = '%}=' %}"), kept);
        same("{% set a %}=b{% endset %}");
        same("{% set a | replace(x='y') %}=b{% endset %}");
        same("{% setting = 3 %}");
    }

    #[test]
    fn long_tags_are_refused() {
        let sum = format!("{{{{ {}1 }}}}", "1+".repeat(60_000));
        let inside = format!("{} bytes without", sum.len() - "{{}}".len());
        assert!(prepare(&sum).is_err_and(|e| e.contains(&inside)));
        same(&format!("{{{{ '{}' }}}}", "1+".repeat(60_000)));
        assert!(prepare(&" ".repeat(LONGEST + 1)).is_err());
        assert!(prepare(&"{% elif 0 %}".repeat(MOST_ELIFS + 1)).is_err());
        same(&"{% elif 0 %}".repeat(MOST_ELIFS));
    }
}
