"Python imports this first, in every process that a page starts: see another_machine"
import os

if 'ELSEWHERE_MACHINE' in os.environ:
    try:
        from another_machine import become
        become(int(os.environ['ELSEWHERE_MACHINE']), float(os.environ['ELSEWHERE_SINCE']))
    except Exception as e:    # Python would print this and run the page as if nothing were to be simulated
        raise SystemExit(f'another machine could not be simulated: {e!r}')
