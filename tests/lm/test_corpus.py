import dataclasses
import hashlib
import http.server
import os
import threading

import pytest

from fusedrnn.lm import CORPORA, CorpusError, CorpusUnavailable, load_corpus
from fusedrnn.lm.corpus import cache_folder, pydoc_in_place_of

TEXT = b"The Time Traveller (for so it will be convenient to speak of him)\n"
SHA1 = hashlib.sha1(TEXT).hexdigest()
WRONG = b"something else\n"
WRONG_SHA1 = hashlib.sha1(WRONG).hexdigest()


@pytest.fixture
def server():
    """A server on 127.0.0.1 whose pages are a dict: path -> (body, Content-Length)."""
    pages = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in pages:
                return self.send_error(404)
            body, length = pages[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", pages
        running.shutdown()
        thread.join()


@pytest.fixture
def served(server, monkeypatch):
    """timemachine is TEXT and lives at /first and /second of the server; returns what the server serves."""
    address, pages = server
    urls = (f"{address}/first", f"{address}/second")
    entry = dataclasses.replace(CORPORA["timemachine"], size=len(TEXT), sha1=SHA1, urls=urls)
    monkeypatch.setitem(CORPORA, "timemachine", entry)
    return pages


@pytest.fixture
def places(served, tmp_path, monkeypatch):
    """A folder for each place a corpus is looked for in, in that order; the server serves it too."""
    served["/first"] = TEXT, len(TEXT)
    monkeypatch.setenv("FUSEDRNN_DATA", str(tmp_path / "data"))
    folders = [tmp_path / "explicit", tmp_path / "data", cache_folder()]
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


def test_table_holds_the_published_files():
    for name, size, sha1 in [
        ("timemachine", 178_979, "090b5e7e70c295757f55df93cb0a180b9691891a"),
        ("tinyshakespeare", 1_115_394, "04486597058d11dcc2c556b1d0433891eb639d2e"),
    ]:
        assert (CORPORA[name].size, CORPORA[name].sha1) == (size, sha1)


def test_timemachine_is_the_file_the_table_promises(timemachine):
    assert len(timemachine.data) == 178_979
    assert len(timemachine.text.splitlines()) == 3_221
    assert (timemachine.tokens, timemachine.max_tokens) == ("course", 10_000)


def test_lookup_order(places):
    """A copy in an earlier place wins over all later ones: spoiling it is noticed, removing it is not."""
    explicit, data, cache = places
    for folder in places:
        (folder / "timemachine.txt").write_bytes(TEXT)
    for folder, path in [(explicit, explicit), (data, None), (cache, None)]:
        copy = folder / "timemachine.txt"
        copy.write_bytes(WRONG)
        with pytest.raises(CorpusError, match=str(copy)):
            load_corpus("timemachine", path)
        copy.unlink()
    assert load_corpus("timemachine").data == TEXT  # downloaded


def test_explicit_path_is_a_file_or_its_folder_and_must_exist(places):
    explicit = places[0]
    with pytest.raises(CorpusError, match="there is no file"):
        load_corpus("timemachine", explicit)
    (explicit / "timemachine.txt").write_bytes(TEXT)
    assert load_corpus("timemachine", explicit).data == TEXT
    assert load_corpus("timemachine", explicit / "timemachine.txt").data == TEXT


def test_download_fills_the_cache(served):
    served["/first"] = TEXT, len(TEXT)
    assert load_corpus("timemachine").data == TEXT
    assert [path.name for path in cache_folder().iterdir()] == ["timemachine.txt"]
    served.clear()
    assert load_corpus("timemachine").data == TEXT


@pytest.mark.parametrize("first", [None, (WRONG, len(WRONG)), (TEXT[:5], len(TEXT))], ids=["404", "wrong", "cut-off"])
def test_download_goes_on_to_the_second_address(served, first):
    if first is not None:
        served["/first"] = first
    served["/second"] = TEXT, len(TEXT)
    assert load_corpus("timemachine").data == TEXT


def test_download_survives_a_cache_that_cannot_be_written(served):
    served["/first"] = TEXT, len(TEXT)
    cache_folder().parent.mkdir(parents=True)
    cache_folder().write_text("a file where the folder should be")
    assert load_corpus("timemachine").data == TEXT


@pytest.mark.parametrize("body", [WRONG, TEXT + b"and more"], ids=["shorter", "longer"])
def test_wrong_sha1_names_both_sums_and_leaves_nothing(served, body):
    served["/first"] = served["/second"] = body, len(body)
    with pytest.raises(CorpusError, match=f"sha1 [0-9a-f]{{40}}, expected {SHA1}") as caught:
        load_corpus("timemachine")
    assert not isinstance(caught.value, CorpusUnavailable)
    assert not cache_folder().exists()


def test_wrong_sha1_of_a_local_copy_names_both_sums(places):
    (places[1] / "timemachine.txt").write_bytes(WRONG)
    with pytest.raises(CorpusError, match=f"sha1 {WRONG_SHA1}, expected {SHA1}"):
        load_corpus("timemachine")


def test_unavailable_says_why_and_how_to_supply_it():
    with pytest.raises(CorpusUnavailable) as caught:
        load_corpus("timemachine")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("no network in tests", "timemachine.txt", CORPORA["timemachine"].sha1, "FUSEDRNN_DATA", "cache"):
        assert part in message


def test_cut_off_download_is_not_a_wrong_file(served):
    served["/first"] = served["/second"] = TEXT[:5], len(TEXT)
    with pytest.raises(CorpusUnavailable):
        load_corpus("timemachine")


def test_pydoc_is_always_there_and_says_what_it_stands_in_for():
    corpus = load_corpus("pydoc")
    assert len(corpus.data) > 300_000
    assert corpus == load_corpus("pydoc")
    assert corpus.label == "pydoc"
    assert pydoc_in_place_of("timemachine").label == "pydoc (standing in for timemachine)"


def test_path_of_a_text_file(tmp_path):
    path = tmp_path / "verse.txt"
    path.write_bytes("\ufeffpâté\r\nà la carte\rfin\n".encode())
    corpus = load_corpus(str(path))
    assert corpus.text == "pâté\nà la carte\nfin\n"
    assert (corpus.tokens, corpus.max_tokens, corpus.label) == ("char", 0, str(path))
    assert corpus.sha1 == hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is neither a file nor one of timemachine, tinyshakespeare, pydoc"),
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"caf\xe9", "is not UTF-8: unexpected end of data at byte 3"),
    ],
    ids=["missing", "empty", "blank", "latin-1"],
)
def test_bad_path(tmp_path, content, message):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        load_corpus(str(path))


def test_folder_is_no_corpus(tmp_path):
    with pytest.raises(CorpusError, match="Is a directory"):
        load_corpus(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path):
    path = tmp_path / "secret"
    path.write_text("text")
    path.chmod(0)
    with pytest.raises(CorpusError, match="Permission denied"):
        load_corpus(str(path))


def test_sentence_pairs_are_no_language_model_corpus():
    with pytest.raises(CorpusError, match="no text for a language model"):
        load_corpus("fra-eng")
