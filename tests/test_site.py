"""The site, built once, and every page of it seen in Chromium: at the width of a phone, in light and in dark."""
import ast, html, inspect, json, os, re, shutil, subprocess, sys, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from filelock import FileLock
from nbformat.v4 import new_code_cell, new_output

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/'nbs'
NOTEBOOKS = sorted(p.relative_to(NBS).with_suffix('') for p in NBS.rglob('*.ipynb')
                   if '.ipynb_checkpoints' not in p.parts)
CHROMIUM, DRIVER = shutil.which('chromium') or shutil.which('google-chrome'), shutil.which('chromedriver')
PHONE = 390  # pixels
NO_NETWORK = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
              '--disable-component-update --disable-sync').split()


# Built once, however many workers pytest-xdist has

def once(path, make):
    """What `make()` returns: made by the first who asks, read by everybody else."""
    with FileLock(f'{path}.lock'):
        if not path.exists(): path.write_text(json.dumps(make()))
    return json.loads(path.read_text())


@pytest.fixture(scope='session')
def shared(tmp_path_factory, worker_id):
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == 'master' else base.parent


@pytest.fixture(scope='session')
def site(shared):
    def build():
        command = [sys.executable, NBS/'site'/'build.py', shared/'site']
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr
    status, said = once(shared/'site.json', build)
    assert status == 0, said  # a warning of Sphinx is an error
    return shared/'site'


# In the files

@pytest.fixture(scope='session')
def files(site):
    return {p.relative_to(site).as_posix(): p.read_text(encoding='utf-8') for p in site.rglob('*.html')}


def test_every_notebook_is_a_page_and_can_be_downloaded_as_it_is(site, files):
    for name in NOTEBOOKS:
        page = f'{name.as_posix()}.html'
        copy = re.search(r'href="([^"]*_downloads/[^"]*\.ipynb)"', files[page])[1]
        assert (site/page).parent.joinpath(copy).read_bytes() == (NBS/f'{name}.ipynb').read_bytes()


def test_every_module_has_its_source_and_its_reference(files):
    for path in (ROOT/'unlearning').rglob('[!_]*.py'):
        name = path.relative_to(ROOT).with_suffix('').as_posix()
        assert f'_modules/{name}.html' in files and f'api/{name.replace("/", ".")}.html' in files


def test_pages_lead_to_one_another_in_order(files):
    page, seen = 'index.html', []
    while following := re.search(r'<a class="next-page" href="([^"]+)"', files[page]):
        page = os.path.normpath(os.path.join(os.path.dirname(page), following[1]))
        seen.append(page)
    numbers = [int(m[1]) for p in seen if (m := re.search(r'(?:^|/)(\d\d)_\w+\.html$', p))]
    assert numbers == sorted(numbers) and {f'{n.as_posix()}.html' for n in NOTEBOOKS} <= {'index.html', *seen}


def test_no_internal_link_is_dead(site, files):
    ids = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in files.items()}
    dead = set()
    for page, text in files.items():
        for link in set(re.findall(r'\b(?:href|src)="([^"]*)"', text)):
            url = urlsplit(html.unescape(link))
            if url.scheme or url.netloc: continue
            target = os.path.normpath(os.path.join(os.path.dirname(page), unquote(url.path))) if url.path else page
            known = not url.fragment or target not in ids or unquote(url.fragment) in ids[target]
            if not ((site/target).is_file() and known): dead.add((page, link))
    assert dead == set()


def test_directives_are_not_shown(files):
    assert [page for page in files if re.search(r'<span class="c1">#\| ?(export|hide|default_exp)', files[page])] == []


def test_a_cell_as_readers_see_it(monkeypatch):
    monkeypatch.syspath_prepend(str(NBS/'site'))
    from build import without_directives
    output = new_output('stream', text='1\n')
    exported = without_directives(new_code_cell('#| export\n#| fig-alt: A line.\nprint(1)', outputs=[output]))
    assert exported.source == 'print(1)' and exported.metadata.tags == ['export']
    assert exported.metadata.mystnb == {'image': {'alt': 'A line.'}}
    assert without_directives(new_code_cell('#| hide\nimport os')) is None
    assert without_directives(new_code_cell('#| default_exp files')) is None
    assert without_directives(new_code_cell('draw()', metadata={'tags': ['hide-cell']})) is None
    without_input = without_directives(new_code_cell('draw()', metadata={'tags': ['hide-input']}))
    assert without_input.metadata.tags == ['remove-input']


def test_a_folder_that_is_no_site_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(NBS/'site'))
    import build
    monkeypatch.setattr(build, 'write_pages', lambda out: pytest.fail('it is built'))
    (tmp_path/'mine.txt').touch()
    with pytest.raises(SystemExit, match='no site: it would be replaced'): build.build(tmp_path)
    assert (tmp_path/'mine.txt').exists()


def test_the_reference_says_what_a_class_is_made_with(tmp_path, monkeypatch):
    """Fields that it inherits are among them, and what `__init__` takes."""
    monkeypatch.syspath_prepend(str(NBS/'site'))
    from reference import write_reference
    from unlearning.images import ImageFile, Split
    from unlearning.methods.contrast import ForgetRound
    write_reference(ROOT, tmp_path, {f'unlearning.{m}': ('page', 'Page') for m in ('images', 'unlearn', 'methods.contrast', 'methods.neggrad_plus')})
    pages = '\n'.join(p.read_text(encoding='utf-8') for p in (tmp_path/'api').glob('*.md'))
    shown = dict(re.findall(r'\{py:class\} (\w+)\((.*)\)$', pages, re.M))
    assert shown['Mixture'] == 'retain_weight: float = 0.0, alpha: float = 0.95'
    for made in (ForgetRound, ImageFile, Split):
        taken = ast.parse(f'def made({shown[made.__name__]}): pass').body[0].args.args
        assert [a.arg for a in taken] == [*inspect.signature(made).parameters]


# In the browser

in_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason='Chromium or its driver is missing: '
                                 'on Debian, apt-get install chromium chromium-driver')

SEEN = """
const done = arguments[0];
document.head.insertAdjacentHTML('beforeend', '<style>* { transition: none !important }</style>');

// Of a text that is seen: its colour and what lies under it, by the formula of WCAG 2.
const parts = c => { const n = c.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1] };
const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
                    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
function ground(element, known) {
  if (!element) return [255, 255, 255, 1];
  if (!known.has(element)) {
    const own = parts(getComputedStyle(element).backgroundColor);
    known.set(element, own[3] == 1 ? own : over(own, ground(element.parentElement, known)));
  }
  return known.get(element);
}
function faint() {
  const known = new Map(), seen = new Set(), found = {};
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, text = texts.currentNode.data.trim();
    if (!text || seen.has(element)) continue;
    seen.add(element);
    if (element.closest('svg, script, style, noscript, mjx-container, .visually-hidden')) continue;
    if (!element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    judge(getComputedStyle(element).color, ground(element, known), text, found);
  }
  for (const element of document.querySelectorAll('input[placeholder]'))
    judge(getComputedStyle(element, '::placeholder').color, ground(element, known), element.placeholder, found);
  return found;
}
function judge(colour, under, text, found) {
  const [a, b] = [light(over(parts(colour), under)), light(under)].sort((x, y) => y - x);
  const ratio = (a + .05) / (b + .05);
  lowest = Math.min(lowest, ratio);
  const pair = colour + ' on ' + under.slice(0, 3).map(Math.round);
  if (ratio < 4.5) found[pair] = ratio.toFixed(2) + ': ' + text.slice(0, 40);
}
let lowest = 21;

(window.MathJax?.startup?.promise ?? Promise.resolve()).then(() => {
  const boxes = [document.documentElement, document.body, ...document.querySelectorAll('.content')];
  const equations = [...document.querySelectorAll('.math')], images = [...document.images];
  const result = {
    wide: boxes.filter(b => b.scrollWidth > Math.min(b.clientWidth, innerWidth) + 1)
               .map(b => b.tagName + ' ' + b.scrollWidth),
    equations: equations.length, images: images.length,
    undrawn: equations.filter(e => !e.querySelector('mjx-container svg')
                                   || e.querySelector('[data-mml-node=merror]'))
                      .map(e => e.textContent),
    broken: images.filter(i => !(i.complete && i.naturalWidth)).map(i => i.src),
  };
  for (const mode of ['light', 'dark']) { document.body.dataset.theme = mode; result[mode] = faint(); }
  done({...result, lowest});
}).catch(error => done({error: String(error)}));
"""


@pytest.fixture(scope='session')
def address(site):
    """The site below a folder of a server, as it may be published."""
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=site.parent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/{site.name}/'
    server.shutdown()


@pytest.fixture(scope='session')
def browser(tmp_path_factory):
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    profile = f'--user-data-dir={tmp_path_factory.mktemp("chromium")}'
    for argument in [*NO_NETWORK, profile]: options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(60)  # seconds: a crowded machine draws equations slowly
    yield driver
    driver.quit()


def width(browser, pixels):
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                            {'width': pixels, 'height': 844, 'deviceScaleFactor': 1, 'mobile': pixels == PHONE})


def look(browser, address, page):
    """What there is to see on a page, and what it asked for."""
    browser.get(address + page)
    seen = browser.execute_async_script(SEEN)
    events = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    asked = {e['params']['request']['url'] for e in events if e['method'] == 'Network.requestWillBeSent'}
    here = address, 'data:', 'chrome:'  # the last: what Chromium itself opens with
    seen['elsewhere'] = [url for url in asked if not url.startswith(here)]
    seen['console'] = [entry['message'] for entry in browser.get_log('browser') if entry['level'] == 'SEVERE']
    return seen


@pytest.fixture(scope='session')
def seen(shared, address, files, browser):
    def visit():
        width(browser, PHONE)
        return {page: look(browser, address, page) for page in sorted(files)}
    return once(shared/'seen.json', visit)


CLAIMS = dict(error='the script that looks ran to its end', console='no error in the console',
              elsewhere='nothing is fetched from another host', broken='every image is drawn',
              undrawn='every equation is drawn', wide='nothing is wider than a phone',
              light='texts stand out by 4.5 : 1', dark='and on a dark page')


@in_chromium
@pytest.mark.parametrize('what', CLAIMS, ids=CLAIMS.get)
def test_every_page(seen, what):
    assert {page: result[what] for page, result in seen.items() if result.get(what)} == {}


@in_chromium
def test_there_was_something_to_see(seen):
    assert len(seen) > 200 and seen['methods/45_gradient_surgery.html']['equations'] and seen['index.html']['images']


@in_chromium
def test_search_finds(browser, address):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait
    width(browser, 1280)
    browser.get(address)
    field = browser.find_element(By.CSS_SELECTOR, 'input[name=q]')
    field.send_keys('gradient surgery')
    field.submit()
    WebDriverWait(browser, 20).until(lambda b: 'found' in b.find_element(By.ID, 'search-results').text)
    results = browser.find_elements(By.CSS_SELECTOR, '#search-results li a')
    found = [re.split('[?#]', a.get_attribute('href'))[0] for a in results]
    assert address + 'methods/45_gradient_surgery.html' in found[:5]


@in_chromium
def test_light_and_dark_are_a_click_away(browser, address):
    from selenium.webdriver.common.by import By
    width(browser, 1280)
    browser.get(address)
    def modes():
        for _ in range(3):
            next(b for b in browser.find_elements(By.CLASS_NAME, 'theme-toggle') if b.is_displayed()).click()
            yield browser.execute_script('return document.body.dataset.theme')
    assert {*modes()} == {'auto', 'light', 'dark'}


@in_chromium
def test_on_this_page(browser, address):
    width(browser, 1440)
    browser.get(address + 'methods/45_gradient_surgery.html')
    assert 'What the surgery removes' in browser.find_element('class name', 'toc-tree').text
