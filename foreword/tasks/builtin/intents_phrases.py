"""Hold the requests of the embedded intent task: per intent `train | validation | test`, separated by `;`.

They are written for Foreword. Requests that begin with `!` are orders, which a polite frame may surround; the others
stand alone. The requests of the test split avoid the characteristic words of training where English has others.
"""

PHRASES: dict[str, str] = {
    "alarm": """
        !set an alarm for {time}; !wake me up at {time}; !wake me {day} at {time}; !cancel my alarm for {time};
        I have to be up at {time} {day}, so set my alarm; !change the alarm from {time} to {time2};
        wake-up time {day} is {time}; !have me up and dressed by {time}; I overslept, so wake me earlier {day};
        at what time does my alarm go off {day}; !let me snooze for {minutes}
        | !ring the bell at {time} so that I wake; !turn off the alarm {day}
        | !get me out of bed by {time}; !make sure that I do not oversleep {day}; I want to rise at {time};
        !rouse me at {time}; I must not sleep past {time}; !let me sleep until {time} {day} and no longer""",
    "timer": """
        !set a timer for {minutes}; !start a timer of {minutes} for the {dish}; !count down {minutes};
        how much time is left on the timer; !stop the timer; !add {minutes} to the timer;
        !give me {minutes} on the clock; how many minutes are left for the {dish};
        !start the clock, I am boiling {dish}; !reset the timer to {minutes};
        is the timer still running for the {dish}
        | !time the {dish} for {minutes}; how long until the timer ends
        | !tell me when {minutes} have passed; !beep in {minutes}; the {dish} needs {minutes}, so keep track of it;
        !begin a countdown of {minutes}; !run the stopwatch; !pause the countdown for the {dish}""",
    "reminder": """
        !remind me to {chore}; !remind me to {chore} {day}; do not let me forget to {chore};
        !set a reminder to {chore} at {time}; !make a reminder that I have to {chore}; what are my reminders {day};
        I must remember to {chore}; what did I want to be reminded of {day}; !leave me a note to {chore};
        I always forget to {chore}, so please warn me {day}; did I already {chore}
        | !help me remember to {chore}; I keep forgetting to {chore}, so tell me {day}
        | !nudge me to {chore} {day}; !prompt me at {time} to {chore}; it must not slip my mind to {chore};
        !jog my memory {day}: I need to {chore}; !make sure that I think of it {day}: {chore}""",
    "calendar": """
        !add a meeting with {person} at {time}; what is on my calendar {day};
        !put the dentist on my calendar {day}; !move the meeting with {person} to {time};
        am I free {day} at {time}; !cancel my meeting with {person} {day}; when do I see {person};
        !plan lunch with {person} {day}; which appointments do I have {day}; !clear my schedule {day};
        do I have time for {person} {day}
        | do I have anything planned {day}; !schedule an hour with {person} {day}
        | what does my agenda look like {day}; !pencil in {person} for {time}; when is my next appointment;
        !postpone the appointment with {person} until {time}; am I busy {day}; !keep {time} free in my diary""",
    "weather": """
        what is the weather in {city} {day}; will it rain {day}; is it cold in {city};
        what will the weather be like {day} in {city}; is it going to snow {day}; how hot is it in {city};
        do I need a jacket in {city}; is it sunny in {city}; how many degrees is it in {city};
        will it be foggy {day}; is the wind strong in {city} {day}
        | how is the forecast for {city}; will it be windy {day}
        | do I need an umbrella {day}; will there be sunshine in {city}; are storms expected in {city} {day};
        is it freezing outside; should I wear a coat {day}; how humid will {city} get {day}""",
    "news": """
        what is in the news {day}; !tell me the latest news about {topic}; !read me the news;
        is there any news from {city}; !show me the news about {topic}; what happened in {city} today;
        what do the papers write about {topic}; what is new in {topic}; !tell me what happened in the world {day};
        who won the vote in {city}; is there an update on {topic}
        | !give me the main stories about {topic}; anything new about {topic}
        | what are the headlines {day}; !bring me up to date on {topic}; what is going on in the world;
        !summarise current events in {city}; what are reporters saying about {topic};
        any breaking stories about {topic}""",
    "music": """
        !play some {genre}; !play a song by {artist}; !put on some {genre} music; !play my favourite song;
        !skip this song; !play the new album by {artist}; !turn up the volume of the song; who sings this song;
        I want to hear {artist}; !sing along to some {genre} with me; what is the name of this tune by {artist}
        | !start my {genre} playlist; !let me hear {artist}
        | I am in the mood for {genre}; I would like to listen to {artist}; !shuffle my tracks;
        !fill the room with {genre}; !repeat that tune; which band sings this""",
    "call": """
        !call {person}; !call {person} on the mobile; !make a call to {person};
        I want to talk to {person} on the phone; !phone {person} {day} at {time}; !call the {office};
        !redial {person}; !answer the phone; is {person} on the line; what is the phone number of the {office};
        let me speak with {person}
        | !ring {person} for me; I need to speak to the {office} by phone
        | !dial the number of {person}; !get {person} on the line; !connect me with the {office};
        !put me through to {person}; !start a video chat with {person}; !hang up and try {person}""",
    "email": """
        !send an email to {person}; !write an email to {person} about the {matter}; !read my new emails;
        do I have any email from {person}; !email the {office} about the {matter}; !delete the email from {person};
        !check my mailbox; did {person} answer my email; !write back to {person};
        !send the {matter} to {person} as an attachment; how many unread messages are in my mailbox
        | !answer the mail of {person}; !forward the mail about the {matter}
        | what is in my inbox; !reply to what {person} wrote about the {matter}; has {person} written to me;
        !draft a message to the {office} with the subject {matter}; !move the spam out of my inbox;
        !attach the {matter} and send it to {person}""",
    "translation": """
        how do you say {word} in {language}; !translate {word} into {language};
        what is the {language} word for {word}; what does this {language} sentence mean;
        !translate this page from {language}; I need a translation of this letter into {language};
        how is {word} pronounced in {language}; !speak {language} for me;
        I do not speak {language}, what does this say; is there a {language} expression for {word};
        !explain this {language} word
        | what do {language} people say for {word}; !put this text into {language}
        | what would {word} be called in {language}; I do not understand this {language} sign;
        !interpret for me in {language}; how would a {language} speaker express {word};
        !turn my note into {language}""",
    "recipe": """
        how do I make {dish}; !find me a recipe for {dish}; what do I need to cook {dish};
        how long do I cook {dish}; !show me a recipe with {food}; what can I cook with {food};
        how much salt goes into {dish}; what temperature does {dish} need in the oven;
        which spices fit with {food}; which dish can I make from {food}; how does one bake {dish}
        | how is {dish} made; which ingredients are in {dish}
        | !explain the steps for preparing {dish}; how should I season {dish}; at what heat do I bake {dish};
        !teach me to prepare {dish}; what goes well with {food} in a pan; do I fry or boil {food}""",
    "shopping": """
        !add {food} to my shopping list; !buy {food}; we need more {food}; !put {food} on the list;
        !read out my shopping list; !order {food} from the shop; I could not find {food} in the fridge;
        I am going to the market, do we need {food}; we have no {food} at home;
        !remember to bring {food} from the store; should I buy {food} today
        | !take {food} off my list; we are out of {food}
        | we have run low on {food}; I have to pick up {food} at the supermarket; !get two packs of {food};
        !stock up on {food}; what groceries are missing; there is no {food} left in the house""",
    "restaurant": """
        !book a table for {number} at {time}; !find a good restaurant in {city}; where can I eat near {city};
        !reserve a table at the {cuisine} restaurant {day}; is there a {cuisine} restaurant near here;
        which restaurant is open {day}; we would like to have lunch {day}; who makes the best {cuisine} food;
        !cancel our table for {number}; I want to eat something {cuisine};
        what is on the menu at the {cuisine} place
        | we are {number} and want to have dinner at {time}; where do they serve {cuisine} food
        | we are hungry, where do people dine in {city}; !get us seats at a {cuisine} bistro {day};
        I fancy going out for {cuisine} food; who serves lunch around here; which café do you suggest in {city};
        !make a dinner reservation for {number}""",
    "taxi": """
        !call a taxi to the {spot}; !order a taxi for {time}; I need a taxi to the {spot};
        !get me a taxi from the {spot}; how much is a taxi to the {spot}; where is my taxi;
        !pick me up at the {spot}; !drive me to the {spot}; can someone take me to the {spot} at {time};
        I am at the {spot} and need a driver; how long is the ride to the {spot}
        | !send a car to the {spot} at {time}; I want to be driven to the {spot}
        | !hail a cab to the {spot}; I need a ride to the {spot}; !have a driver pick me up at {time};
        how soon can a cab be here; !arrange a lift from the {spot}; is my driver on the way""",
    "flight": """
        !book a flight to {city}; !find flights from {city} to {city2}; when does my flight to {city} leave;
        how much is a flight to {city} {day}; !cancel my flight to {city}; is my flight from {city} late;
        which gate is my plane to {city}; how long is the flight from {city} to {city2};
        !book a seat on the plane to {city}; can I travel by air to {city} {day};
        is there a ticket to {city} by plane
        | !get me on a plane to {city}; which airline goes to {city}
        | I want to fly to {city} {day}; has the plane from {city} landed;
        what are the cheapest air fares to {city}; !check me in for the trip from {city}, by the window;
        which airport do I leave from {day}; when do I board for {city}""",
    "hotel": """
        !book a hotel in {city}; !find a hotel near the {spot}; how much is a hotel room in {city};
        !reserve a room in {city} for {number} nights; !cancel my hotel in {city};
        which hotel in {city} has a pool; where can I sleep in {city}; we need a room for {number} in {city};
        does the hotel serve breakfast; !extend my stay in {city} by {number} nights;
        is there a bed free near the {spot}
        | !get me a double room near the {spot}; where can we stay in {city}
        | I need somewhere to sleep in {city}; !look for a hostel by the {spot}; are there cheap beds in {city};
        where do I spend the night in {city}; !find accommodation for {number} near the {spot};
        does the inn at the {spot} have vacancies""",
    "balance": """
        what is my balance; how much money is in my {account} account; what is the balance of my {account} account;
        !show me my {account} balance; how much did I spend on {food} this week;
        do I have {amount} in my {account} account; am I in debt on my {account} account;
        can I pay {amount} from my {account} account; !show me my last payments; how much of my salary is left;
        !tell me the state of my {account} finances; did my salary arrive
        | how much do I have left in {account}; !check what I spent on {food}
        | how rich am I right now; am I overdrawn; what are my latest bank statements;
        can I afford {amount} this month; what are my {account} funds; how far into the red am I""",
    "transfer": """
        !send {amount} to {person}; !transfer {amount} to my {account} account; !pay {person} {amount};
        !move {amount} from {account} to {account2}; !transfer {amount} to the {office}; !pay the bill of {amount};
        {person} should get {amount} from me; !deposit {amount} into my {account} account;
        I still have to pay {person} back {amount}; !lend {person} {amount};
        !make a payment of {amount} to the {office}
        | !give {person} {amount} from my account; !settle the invoice of {amount}
        | I owe {person} {amount}, so wire it; !put {amount} aside in {account}; !reimburse {person} with {amount};
        !shift {amount} over to {account}; !remit {amount} for the rent; {person} lent me {amount}, return it""",
    "lights": """
        !turn on the lights in the {room}; !switch off the light in the {room}; !turn off all the lights;
        !make the light in the {room} brighter; !set the {room} lights to blue; are the lights on in the {room};
        it is dark in the {room}; !brighten the {room}; I need more light in the {room};
        the lamp in the {room} should be green; who left the {room} lit
        | !make the {room} less dark; did I leave a light on in the {room}
        | it is too dark in the {room}; !dim the lamps in the {room}; I cannot see anything in the {room};
        !illuminate the {room}; !kill the lamp next to my bed; the {room} should glow in red""",
    "heating": """
        !turn up the heating in the {room}; !set the heating to {degrees}; !turn off the heating;
        !make it warmer in the {room}; what is the temperature in the {room}; !heat the {room} at {time};
        I am cold in the {room}; !warm up the {room}; it is too hot in the {room};
        !turn the radiator in the {room} down; the {room} should have {degrees}
        | !set the {room} to {degrees}; it is too cold in the {room}
        | I am shivering in the {room}; !adjust the thermostat to {degrees}; !cool down the {room};
        the {room} feels chilly; !lower the radiator by two; !have the {room} at {degrees} when I come home""",
}

SLOTS: dict[str, str] = {
    "time": """six; seven; eight o'clock; half past five; ten in the morning; noon; three in the afternoon; 9 pm
        | a quarter to seven; eleven | 6:45; twenty past four; 7:30; dawn; five to nine""",
    "day": """today; tomorrow; on monday; on friday; this weekend; tonight; on wednesday
        | on tuesday; tomorrow morning | on thursday; on sunday; this evening; the day after tomorrow; on saturday""",
    "minutes": """ten minutes; five minutes; half an hour; twenty minutes; an hour; two minutes
        | fifteen minutes; three hours | ninety seconds; forty minutes; a quarter of an hour; twelve minutes""",
    "dish": """pasta; soup; rice; pancakes; a chocolate cake; chicken curry; pizza; bread; fried eggs
        | an omelette; potato salad | lasagne; risotto; goulash; apple pie; stew; muffins""",
    "food": """milk; eggs; cheese; tomatoes; bread; apples; chicken; coffee; rice; butter
        | onions; yoghurt | spinach; mushrooms; flour; lemons; salmon; carrots; olive oil""",
    "chore": """call the bank; take out the rubbish; buy flowers; pay the rent; water the plants; book the dentist;
        send the report; feed the cat; check the oven
        | charge the phone; visit grandma
        | renew my passport; return the library books; defrost the fridge; collect the parcel; tidy the garage""",
    "person": """my mother; anna; john; my boss; peter; my sister; doctor smith; the team; maria
        | my uncle; lucy | my landlord; ahmed; my cousin; sophie; the plumber; mr wilson; grandpa""",
    "office": """bank; dentist; school; office; doctor
        | hospital; library | town hall; insurance company; garage; pharmacy""",
    "matter": """meeting; invoice; holiday; contract; new project; party | rent; report
        | budget; delivery; broken printer; schedule; photos; interview""",
    "city": """london; paris; berlin; new york; rome; madrid; chicago; tokyo | vienna; boston
        | lisbon; dublin; istanbul; oslo; toronto; cairo; prague""",
    "topic": """the election; football; the economy; the war; technology; the president; the strike
        | climate change; the royal family | the earthquake; the trial; space travel; the stock market; tennis""",
    "genre": """jazz; rock; classical; pop; country; blues | folk; soul | reggae; opera; heavy metal; disco; hip hop""",
    "artist": """the beatles; madonna; queen; elvis; mozart; bob dylan | prince; adele
        | nina simone; bach; david bowie; abba; johnny cash""",
    "word": """good morning; thank you; water; house; cheers; love; train station | goodbye; bread
        | happy birthday; butterfly; excuse me; bicycle; see you soon; kitchen""",
    "language": """french; german; spanish; italian; chinese; russian | dutch; latin
        | portuguese; japanese; polish; arabic; greek""",
    "number": """two; four; three; six | five; eight | seven; nine; a dozen; ten""",
    "cuisine": """italian; chinese; french; indian; mexican
        | thai; spanish | greek; turkish; vietnamese; lebanese; korean""",
    "spot": """airport; station; city centre; hotel; hospital; university; beach | museum; theatre
        | harbour; stadium; castle; cathedral; conference centre; zoo""",
    "account": """savings; current; joint; business; main; travel
        | holiday; family | deposit; household; pension; student""",
    "amount": """fifty dollars; 100 euros; twenty pounds; 300 dollars; ten euros | 75 pounds; a thousand dollars
        | 1,200 euros; thirty-five pounds; eighty dollars; 64 euros; half my salary""",
    "room": """kitchen; living room; bedroom; bathroom; hall; whole house | office; garage
        | nursery; basement; study; attic; guest room; conservatory""",
    "degrees": """twenty degrees; 18 degrees; 22 degrees; a lower level | 19 degrees; 25 degrees
        | twenty-one degrees; seventeen degrees; 23 celsius; a comfortable level""",
}

# polite frames around an order: train | validation | test
FRAMES = """please {request}; can you {request}; could you {request} please; I want you to {request}; {request} for me
    | would you {request}; {request} now
    | be so kind as to {request}; I would be grateful if you could {request}; hey, {request}; {request}, thanks;
    is it possible for you to {request}; go ahead and {request}"""

# around any other request
OPENINGS = """tell me: {request}; hello, {request}; {request}, please | so, {request}; {request} then
    | excuse me, {request}; quick question: {request}; {request}, if you happen to know; listen, {request}"""
