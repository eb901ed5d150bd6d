"""`retinue claim SLUG`."""

from jsonargparse import Namespace

from retinue.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """Take a system and a budget."""
    parser.add_argument("slug", type=str, help="a system")
    parser.add_argument(
        "--budget", type=str, default="laptop", help="laptop gives the verdict, smoke walks through the same code in seconds"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="other seeds than the claim's own")
    parser.add_argument("--workers", type=int, default=0, help="seeds that run at once")
    parser.add_argument("--folder", type=str, default="claims", help="where the record and the picture go")


def run(options: Namespace) -> None:
    """Run the experiment on all seeds, and print its verdict."""
    from retinue.claims.harness import claim_module, run_claim, summary

    module = claim_module(options.slug)
    print(f"claim: {' '.join((module.__doc__ or '').split())}\nrule:  {module.RULE}", flush=True)
    result = run_claim(
        options.slug, options.budget, options.seeds, options.workers, options.folder, tell=lambda line: print(line, flush=True)
    )
    for name, value, error in summary(result):
        print(f"  {name}: {value} ± {error}")
    for name, passed in result.parts.items():
        print(f"  {'passed' if passed else 'failed'}: {name}")
    print(f"{result.verdict} ({result.seconds:.0f} s){': ' + result.reason if result.reason else ''}")
    print(f"record: {options.folder}/{options.slug}{'' if result.budget == 'laptop' else '.' + result.budget}.json")
